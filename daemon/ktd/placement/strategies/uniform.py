"""``uniform``: every layer the same number of experts, the lowest ids."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ktd.placement.strategies.base import Choice, Evidence, even_split, prefixes

if TYPE_CHECKING:
    from collections.abc import Sequence


class Uniform:
    """KTransformers' ``uniform``: an even split, the first layers one more, prefix ids."""

    name = "uniform"

    def initial(self, num_layers: int, num_experts: int, budget: int, evidence: Evidence) -> Choice:
        """See :class:`~ktd.placement.strategies.base.Strategy`."""
        del evidence
        return Choice(prefixes(even_split(num_layers, num_experts, budget)))

    def live(self, num_experts: int, slots: Sequence[int], evidence: Evidence) -> Choice:
        """Fills every slot with the lowest ids of its layer."""
        del num_experts, evidence
        return Choice(prefixes(slots))
