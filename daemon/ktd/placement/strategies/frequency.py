"""``frequency``: the experts that the router chose most often."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ktd.placement.strategies.base import Choice, Counts, even_split, prefixes

if TYPE_CHECKING:
    from collections.abc import Sequence

_NO_STATISTICS = (
    "There are no activation statistics yet, so frequency places as uniform does: "
    "send requests first, or give a file with --init-expert-location."
)


class Frequency:
    """KTransformers' ``frequency``: one global top-k of raw counts over all layers and experts.

    Torch leaves ties open; here the higher count comes first, then the lower layer, then the lower
    id. Without statistics the peer ranks an all-ones table, which is not even by construction;
    here that case is the even prefix split of ``uniform``.
    """

    name = "frequency"

    def initial(
        self, num_layers: int, num_experts: int, budget: int, counts: Counts | None
    ) -> Choice:
        """See :class:`~ktd.placement.strategies.base.Strategy`."""
        if counts is None or not any(any(layer) for layer in counts):
            return Choice(prefixes(even_split(num_layers, num_experts, budget)), (_NO_STATISTICS,))
        flat = [count for layer in counts for count in layer]
        chosen: list[list[int]] = [[] for _ in range(num_layers)]
        for index in _ranked(flat)[:budget]:
            layer, expert = divmod(index, num_experts)
            chosen[layer].append(expert)
        return Choice(tuple(tuple(sorted(experts)) for experts in chosen))

    def live(self, num_experts: int, slots: Sequence[int], counts: Counts | None) -> Choice:
        """The top ``slots[i]`` of each layer."""
        del num_experts
        if counts is None or not any(any(layer) for layer in counts):
            return Choice(prefixes(slots), (_NO_STATISTICS,))
        return Choice(
            tuple(
                tuple(sorted(_ranked(layer)[:size]))
                for layer, size in zip(counts, slots, strict=True)
            )
        )


def _ranked(counts: Sequence[float]) -> list[int]:
    # Sorting is stable, also in reverse: of equal counts the lower index stays first.
    return sorted(range(len(counts)), key=counts.__getitem__, reverse=True)
