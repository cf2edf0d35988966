"""Routing that was drawn beforehand, in the place of the router's: for ``ktd bench table`` alone.

It makes answers meaningless, so nothing but the file that a running bench has written turns it on,
and only for an engine that was started with that file's run id (ktd.enginespec.Bench).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ktd.enginespec import Bench, EngineSpec

logger = logging.getLogger(__name__)


class BenchRoutingRefused(Exception):  # says what happened
    """The file is not the one that this engine was started with, or not of this model."""


class BenchRouting:
    """Hands out the expert ids of one token after the other, the same for all ranks.

    What a step needs lies at one place, which :meth:`advance` fills between two steps, on the
    stream that runs them: a layer adds no work, and graphs find each step's ids there.

    Args:
        ids: int ``[tokens, MoE layers, K]``; after the last token the first one follows.
        device: Where the router's ids are.
        rows: Of the largest step in a graph.
    """

    def __init__(self, ids: torch.Tensor, *, device: torch.device, rows: int) -> None:
        by_layer = ids.to(torch.int32).permute(1, 0, 2)
        self._table = by_layer.contiguous().to(device)
        self._next = 0
        first = torch.arange(rows, device=device) % self.tokens
        self._fixed = self._table.index_select(1, first)
        self._step = self._fixed

    @property
    def tokens(self) -> int:
        """In the table."""
        return self._table.shape[1]

    @property
    def top_k(self) -> int:
        """Experts of a token."""
        return self._table.shape[2]

    def advance(self, rows: int) -> None:
        """A step of so many tokens is about to be launched on the current stream."""
        begin, self._next = self._next, (self._next + rows) % self.tokens
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
    ids = read_routing(
        Path(bench.routing),
        bench.run_id,
        layers=len(spec.moe_layers),
        experts=spec.num_experts,
        top_k=spec.experts_per_token,
    )
    logger.warning("ktd bench table replaces the routing: answers have no meaning")
    return BenchRouting(ids, device=device, rows=rows)


def read_routing(path: Path, run_id: str, *, layers: int, experts: int, top_k: int) -> torch.Tensor:
    """The ids that a bench has written.

    Raises:
        BenchRoutingRefused: They are not this engine's.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            ids, written = file["ids"], str(file["run_id"])
    except (OSError, ValueError, KeyError) as error:
        raise BenchRoutingRefused(f"the bench's routing cannot be read: {error}") from error
    if written != run_id:
        raise BenchRoutingRefused("the bench's routing has the id of another run")
    fits = ids.ndim == 3 and len(ids) and ids.shape[1:] == (layers, top_k)  # noqa: PLR2004
    if not fits or ids.min() < 0 or ids.max() >= experts:
        raise BenchRoutingRefused(
            f"the bench's routing {list(ids.shape)} is not one of {layers} layers, {experts} "
            f"experts and {top_k} of them for a token"
        )
    return torch.from_numpy(ids.astype(np.int32))
