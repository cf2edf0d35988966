"""Routing that was drawn beforehand, in the place of the router's: for ``ktd bench table`` alone.

It makes answers meaningless, so nothing but the file that a running bench has written turns it on,
and only for an engine that was started with that file's run id (ktd.enginespec.Bench).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ktd.enginespec import Bench, EngineSpec

logger = logging.getLogger(__name__)

# Of the file beside a routing's that says which one holds: one int64 in memory that both map.
WHICH = ".which"


class BenchRoutingRefused(Exception):  # says what happened
    """The file is not the one that this engine was started with, or not of this model."""


class BenchRouting:
    """Hands out the expert ids of one token after the other, the same for all ranks.

    What a step needs lies at one place, which :meth:`advance` fills between two steps, on the
    stream that runs them: a layer adds no work, and graphs find each step's ids there.

    Args:
        ids: Each int ``[tokens, MoE layers, K]``; after the last token the first one follows.
        which: Says which of them holds now.
        device: Where the router's ids are.
        rows: Of the largest step in a graph.
    """

    def __init__(
        self,
        ids: Sequence[torch.Tensor],
        *,
        which: Callable[[], int],
        device: torch.device,
        rows: int,
    ) -> None:
        self._tables = [one.to(torch.int32).permute(1, 0, 2).contiguous().to(device) for one in ids]
        self._which = which
        self._table = self._tables[which()]
        # Of all tokens, whatever held meanwhile: ranks that see a change a step apart agree again.
        self._seen = 0
        first = torch.arange(rows, device=device) % self.tokens
        self._fixed = self._table.index_select(1, first)
        self._step = self._fixed

    @property
    def tokens(self) -> int:
        """In the table that holds."""
        return self._table.shape[1]

    @property
    def top_k(self) -> int:
        """Experts of a token."""
        return self._table.shape[2]

    def advance(self, rows: int) -> None:
        """A step of so many tokens is about to be launched on the current stream."""
        self._table = self._tables[self._which()]
        begin = self._seen % self.tokens
        self._seen += rows
        if begin + rows <= self.tokens:
            part = self._table[:, begin : begin + rows]
        else:
            places = torch.arange(begin, begin + rows, device=self._table.device) % self.tokens
            part = self._table.index_select(1, places)
        if rows <= self._fixed.shape[1]:
            self._fixed[:, :rows].copy_(part)
            self._step = self._fixed
        else:
            self._step = part  # larger than any graph

    def ids(self, position: int, routed: torch.Tensor) -> torch.Tensor:
        """Ids for the rows of ``routed`` in one MoE layer, of its type; padding gets any ids."""
        rows = routed.shape[0]
        if rows <= self._step.shape[1]:
            return self._step[position, :rows].to(routed.dtype)
        # A step that nobody announced, larger than any graph.
        places = torch.arange(rows, device=self._table.device) % self.tokens
        return self._table[position].index_select(0, places).to(routed.dtype)

    def replaced(self, position: int, dispatch_output: Any) -> Any:
        """SGLang's dispatch output with these ids; weights stay the router's."""
        topk = dispatch_output.topk_output
        return dispatch_output._replace(
            topk_output=topk._replace(topk_ids=self.ids(position, topk.topk_ids))
        )


def bench_routing_of(
    spec: EngineSpec, bench: Bench, *, device: torch.device, rows: int
) -> BenchRouting:
    """What a bench has asked an engine for, said aloud.

    Raises:
        BenchRoutingRefused: What it wrote is not for this engine.
    """
    path = Path(bench.routing)
    ids = read_routing(
        path,
        bench.run_id,
        layers=len(spec.moe_layers),
        experts=spec.num_experts,
        top_k=spec.experts_per_token,
    )
    logger.warning("ktd bench table replaces the routing: answers have no meaning")
    return BenchRouting(ids, which=which_of(path, len(ids)), device=device, rows=rows)


def which_of(path: Path, count: int) -> Callable[[], int]:
    """Reads which routing of a file holds, as the bench says it beside the file.

    Raises:
        BenchRoutingRefused: It says nothing.
    """
    try:
        word = np.memmap(path.with_suffix(WHICH), np.int64, "r", shape=(1,))
    except (OSError, ValueError) as error:
        raise BenchRoutingRefused(f"the bench does not say which routing: {error}") from error
    return lambda: int(word[0]) % count


def read_routing(
    path: Path, run_id: str, *, layers: int, experts: int, top_k: int
) -> list[torch.Tensor]:
    """The ids that a bench has written, one routing or several.

    Raises:
        BenchRoutingRefused: They are not this engine's.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            found = [file[name] for name in file.files if name != "run_id"]
            written = str(file["run_id"])
    except (OSError, ValueError, KeyError) as error:
        raise BenchRoutingRefused(f"the bench's routing cannot be read: {error}") from error
    if written != run_id:
        raise BenchRoutingRefused("the bench's routing has the id of another run")
    for ids in found:
        fits = ids.ndim == 3 and len(ids) and ids.shape[1:] == (layers, top_k)  # noqa: PLR2004
        if not fits or ids.min() < 0 or ids.max() >= experts:
            raise BenchRoutingRefused(
                f"the bench's routing {list(ids.shape)} is not one of {layers} layers, {experts} "
                f"experts and {top_k} of them for a token"
            )
    if not found:
        raise BenchRoutingRefused("the bench's file has no routing")
    return [torch.from_numpy(ids.astype(np.int32)) for ids in found]
