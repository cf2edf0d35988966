"""Where each expert is computed in a long prefill, and the tables that say so."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from ktd.cuda.pinned_ring import PinnedRing
from ktd.sgl.expert_layer import EMPTY, ExpertLayer

# While one buffer's copy is behind a pass that runs, the next pass is divided in the other.
_BUFFERS = 2
_WORD = 8

Flags = npt.NDArray[np.bool_]


class PrefillDivision:
    """The division of the pass that is being launched; before the first the CPU has everything.

    An expert with a slot is computed there. The link's time for one without does not depend on its
    tokens and the CPU's does, so the CPU gets those of a layer that were chosen least, and the
    others pass through the buffer, in the order of their ids.

    Args:
        device: Where the tables are.
        layers: MoE layers of the model.
        experts: Of each.
    """

    def __init__(self, device: torch.device, layers: int, experts: int) -> None:
        self._entries = np.full((layers, experts), EMPTY, np.int32)
        self._tables = torch.from_numpy(self._entries).to(device, copy=True)
        self._streamed: list[list[int]] = [[] for _ in range(layers)]
        self._in_slots = [False] * layers
        num_bytes = self._tables.numel() * self._tables.element_size()
        self._ring = PinnedRing(
            device, buffers=_BUFFERS, buffer_bytes=-(-num_bytes // _WORD) * _WORD
        )

    def table(self, position: int) -> torch.Tensor:
        """int32 ``[E]`` on the device: who computes an expert in this pass.

        Its slot; or S + i, for the expert that passes through the buffer as the layer's i-th; or
        -1, if the CPU has it.
        """
        return self._tables[position]

    def streamed(self, position: int) -> Sequence[int]:
        """Experts of a layer that pass through the buffer, in this order."""
        return self._streamed[position]

    def in_slots(self, position: int) -> bool:
        """Whether slots compute any expert of a layer."""
        return self._in_slots[position]

    def divide(
        self,
        positions: Sequence[int],
        layers: Sequence[ExpertLayer],
        counters: torch.Tensor,
        share: Callable[[int], int] | None,
    ) -> int:
        """Divides a pass that is about to be launched on the current stream.

        Args:
            positions: Of the layers that take part, among the MoE layers.
            layers: Those.
            counters: int64 ``[kinds, MoE layers, E, tiers]`` in host memory: how often experts were
                chosen so far.
            share: From a number of experts without a slot, how many of them are the CPU's; None:
                none.

        Returns:
            How many experts the CPU has, of all layers together.
        """
        # By numpy, which takes the calling thread alone: the cores of a team are the pool's.
        slots = np.stack([layer.table.numpy() for layer in layers])
        absent = slots == EMPTY
        streamed = (
            absent if share is None else absent & ~_coldest(positions, absent, counters, share)
        )
        numbers = np.array([[layer.num_slots] for layer in layers], np.int32)
        rows = numbers + streamed.cumsum(axis=1, dtype=np.int32) - 1
        entries = self._entries.copy()
        entries[list(positions)] = np.where(streamed, rows, slots)
        for position, chosen, has_slots in zip(
            positions, streamed, ~absent.all(axis=1), strict=True
        ):
            self._streamed[position] = chosen.nonzero()[0].tolist()
            self._in_slots[position] = bool(has_slots)
        if not np.array_equal(entries, self._entries):
            self._entries = entries
            # Behind the passes that read the former tables, and nobody waits for it.
            self._ring.upload(self._tables, self._fill)
        return int(absent.sum() - streamed.sum())

    def _fill(self, start: int, count: int, memory: torch.Tensor) -> None:
        memory.numpy()[:] = self._entries[start : start + count]


def _coldest(
    positions: Sequence[int],
    absent: Flags,
    counters: torch.Tensor,
    share: Callable[[int], int],
) -> Flags:
    """``[layers, E]``: the CPU's."""
    numbers = absent.sum(axis=1).tolist()
    shares = {number: share(number) for number in set(numbers)}
    chosen = counters.numpy().sum(axis=(0, 3))[list(positions)]
    order = np.where(absent, chosen, np.iinfo(chosen.dtype).max).argsort(1, kind="stable")
    found = np.zeros_like(absent)
    for row, number in enumerate(numbers):
        found[row, order[row, : shares[number]]] = True
    return found
