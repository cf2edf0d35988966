"""``frequency``: the experts that the router chose most often."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ktd.placement.strategies.base import (
    Choice,
    Evidence,
    even_split,
    ranked,
    tops,
    without_statistics,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


class Frequency:
    """KTransformers' ``frequency``: one global top-k of raw counts over all layers and experts.

    Torch leaves ties open; here the higher count comes first, then the lower layer, then the lower
    id. Without statistics the peer ranks an all-ones table, which is not even by construction;
    here that case is the even prefix split of ``uniform``.
    """

    name = "frequency"

    def initial(self, num_layers: int, num_experts: int, budget: int, evidence: Evidence) -> Choice:
        """See :class:`~ktd.placement.strategies.base.Strategy`."""
        counts = evidence.counted
        if counts is None:
            return without_statistics(self.name, even_split(num_layers, num_experts, budget))
        flat = [count for layer in counts for count in layer]
        chosen: list[list[int]] = [[] for _ in range(num_layers)]
        for index in ranked(flat)[:budget]:
            layer, expert = divmod(index, num_experts)
            chosen[layer].append(expert)
        return Choice(tuple(tuple(sorted(experts)) for experts in chosen))

    def live(self, num_experts: int, slots: Sequence[int], evidence: Evidence) -> Choice:
        """The top ``slots[i]`` of each layer."""
        del num_experts
        counts = evidence.counted
        if counts is None:
            return without_statistics(self.name, slots)
        return Choice(tops(counts, slots))
