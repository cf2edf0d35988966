"""Which experts of which layers the CPU has in a long prefill, and the tables that say so."""

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
    """The division of the pass that is being launched; before the first the CPU has nothing.

    The link's time for an expert does not depend on its tokens and the CPU's does, so the CPU gets
    those of a layer's experts without a slot that were chosen least.

    Args:
        device: Where the tables are.
        layers: MoE layers of the model.
        experts: Of each.
    """

    def __init__(self, device: torch.device, layers: int, experts: int) -> None:
        everywhere = torch.arange(experts, dtype=torch.int32, device="cpu")
        self._everywhere = everywhere.numpy()
        self._tables = everywhere.to(device).repeat(layers, 1)
        self._on_cpu = np.zeros((layers, experts), bool)
        num_bytes = self._tables.numel() * self._tables.element_size()
        self._ring = PinnedRing(
            device, buffers=_BUFFERS, buffer_bytes=-(-num_bytes // _WORD) * _WORD
        )

    def table(self, position: int) -> torch.Tensor:
        """int32 ``[E]`` on the device: an expert's id, or -1 if the CPU has it in this pass."""
        return self._tables[position]

    def on_cpu(self, position: int) -> Flags:
        """``[E]`` in host memory: whether the CPU has an expert in this pass."""
        found: Flags = self._on_cpu[position]
        return found

    def divide(
        self,
        positions: Sequence[int],
        layers: Sequence[ExpertLayer],
        counters: torch.Tensor,
        share: Callable[[int], int],
    ) -> int:
        """Divides a pass that is about to be launched on the current stream.

        Args:
            positions: Of the layers that take part, among the MoE layers.
            layers: Those.
            counters: int64 ``[kinds, MoE layers, E, tiers]`` in host memory: how often experts were
                chosen so far.
            share: From a number of experts without a slot, how many of them are the CPU's.

        Returns:
            How many experts the CPU has, of all layers together.
        """
        # By numpy, which takes the calling thread alone: the cores of a team are the pool's.
        absent = np.stack([layer.table.numpy() for layer in layers]) == EMPTY
        numbers = absent.sum(axis=1).tolist()
        shares = {number: share(number) for number in set(numbers)}
        wanted = [shares[number] for number in numbers]
        chosen = counters.numpy().sum(axis=(0, 3))[list(positions)]
        coldest = np.where(absent, chosen, np.iinfo(chosen.dtype).max).argsort(1, kind="stable")
        on_cpu = np.zeros_like(self._on_cpu)
        for position, number, order in zip(positions, wanted, coldest, strict=True):
            on_cpu[position, order[:number]] = True
        if not np.array_equal(on_cpu, self._on_cpu):
            self._on_cpu = on_cpu
            # Behind the passes that read the former tables, and nobody waits for it.
            self._ring.upload(self._tables, self._fill)
        return sum(wanted)

    def _fill(self, start: int, count: int, memory: torch.Tensor) -> None:
        on_cpu = self._on_cpu[start : start + count]
        memory.numpy()[:] = np.where(on_cpu, np.int32(EMPTY), self._everywhere)
