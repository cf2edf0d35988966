"""Which experts of which layers the CPU has in a long prefill, and the tables that say so."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ktd.cuda.pinned_ring import PinnedRing
from ktd.sgl.expert_layer import EMPTY, ExpertLayer

# While one buffer's copy is behind a pass that runs, the next pass is divided in the other.
_BUFFERS = 2
_WORD = 8


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
        self._everywhere = torch.arange(experts, dtype=torch.int32, device="cpu")
        self._tables = self._everywhere.to(device).repeat(layers, 1)
        self._on_cpu = torch.zeros(layers, experts, dtype=torch.bool, device="cpu")
        num_bytes = self._tables.numel() * self._tables.element_size()
        self._ring = PinnedRing(
            device, buffers=_BUFFERS, buffer_bytes=-(-num_bytes // _WORD) * _WORD
        )

    def table(self, position: int) -> torch.Tensor:
        """int32 ``[E]`` on the device: an expert's id, or -1 if the CPU has it in this pass."""
        return self._tables[position]

    def on_cpu(self, position: int) -> torch.Tensor:
        """Bool ``[E]`` in host memory: whether the CPU has an expert in this pass."""
        return self._on_cpu[position]

    def divide(
        self,
        positions: Sequence[int],
        layers: Sequence[ExpertLayer],
        counts: torch.Tensor,
        share: Callable[[int], int],
    ) -> int:
        """Divides a pass that is about to be launched on the current stream.

        Args:
            positions: Of the layers that take part, among the MoE layers.
            layers: Those.
            counts: int64 ``[MoE layers, E]`` in host memory: how often experts were chosen so far.
            share: From a number of experts without a slot, how many of them are the CPU's.

        Returns:
            How many experts the CPU has, of all layers together.
        """
        absent = torch.stack([layer.table for layer in layers]) == EMPTY
        numbers = absent.sum(1).tolist()
        shares = {number: share(number) for number in set(numbers)}
        wanted = torch.tensor([shares[number] for number in numbers], device="cpu")
        last = torch.iinfo(counts.dtype).max
        numbered = counts[list(positions)].masked_fill(~absent, last)
        coldest = numbered.argsort(dim=1, stable=True)
        chosen = torch.zeros_like(absent)
        chosen.scatter_(1, coldest, self._everywhere < wanted[:, None])
        on_cpu = torch.zeros_like(self._on_cpu)
        on_cpu[list(positions)] = chosen
        if not torch.equal(on_cpu, self._on_cpu):
            self._on_cpu = on_cpu
            # Behind the passes that read the former tables, and nobody waits for it.
            self._ring.upload(self._tables, self._fill)
        return int(wanted.sum())

    def _fill(self, start: int, count: int, memory: torch.Tensor) -> None:
        torch.where(
            self._on_cpu[start : start + count],
            torch.full_like(self._everywhere, EMPTY),
            self._everywhere,
            out=memory,
        )
