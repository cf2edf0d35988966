"""``front-loading``: the first layers whole, as far as the budget goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ktd.placement.strategies.base import Choice, Evidence, prefixes

if TYPE_CHECKING:
    from collections.abc import Sequence


class FrontLoading:
    """KTransformers' ``front-loading``: layers in order, each as full as what is left allows."""

    name = "front-loading"

    def initial(self, num_layers: int, num_experts: int, budget: int, evidence: Evidence) -> Choice:
        """See :class:`~ktd.placement.strategies.base.Strategy`."""
        del evidence
        sizes: list[int] = []
        for _ in range(num_layers):
            sizes.append(min(budget, num_experts))
            budget -= sizes[-1]
        return Choice(prefixes(sizes))

    def live(self, num_experts: int, slots: Sequence[int], evidence: Evidence) -> Choice:
        """Fills every slot, as the slots of a layer cannot be given to another one."""
        del num_experts, evidence
        return Choice(prefixes(slots))
