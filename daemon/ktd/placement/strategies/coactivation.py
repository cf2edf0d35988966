"""``coactivation``: experts that the same tokens choose, together."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ktd.errors import InvalidArgument
from ktd.placement.strategies.base import Choice, Evidence, even_split
from ktd.placement.strategies.frequency import Frequency

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ktd.placement.strategies.base import PairCounts

_NO_PAIRS = (
    "Nobody has recorded which experts are chosen together, so coactivation places as frequency "
    "does: give a recording of single tokens with --init-expert-location."
)


class Coactivation:
    """Prefers tokens that find all their experts in slots to many tokens that find some.

    Objective, per layer: the sum of C[i][j] over pairs i <= j of chosen experts, C how often one
    token chose both and C[i][i] how often i was chosen. A token that hits h slots counts
    h (h + 1) / 2 in it, so hits that come together weigh more: a token with all its experts in
    slots leaves the CPU nothing to do.

    That is the heaviest k-subgraph problem, which is NP-hard; experts are added one by one, each
    time the one that adds most to those chosen so far (the lower id on a tie), which has no
    guarantee. Every layer gets the same number of slots, as being together is a matter of one
    layer. Each budget's choice contains that of every smaller one.
    """

    name = "coactivation"

    def initial(self, num_layers: int, num_experts: int, budget: int, evidence: Evidence) -> Choice:
        """See :class:`~ktd.placement.strategies.base.Strategy`."""
        if evidence.pairs is None:
            choice = Frequency().initial(num_layers, num_experts, budget, evidence)
            return replace(choice, notes=(_NO_PAIRS, *choice.notes))
        sizes = even_split(num_layers, num_experts, budget)
        return self.live(num_experts, sizes, evidence)

    def live(self, num_experts: int, slots: Sequence[int], evidence: Evidence) -> Choice:
        """The same within the slots of each layer."""
        pairs = evidence.pairs
        if pairs is None:
            choice = Frequency().live(num_experts, slots, evidence)
            return replace(choice, notes=(_NO_PAIRS, *choice.notes))
        wanted = (len(slots), num_experts, num_experts)
        if tuple(pairs.shape) != wanted:
            raise InvalidArgument(
                f"The recording counts pairs of shape {list(pairs.shape)}, but this model needs "
                f"{list(wanted)}; record this model."
            )
        return Choice(_together(pairs, slots))


def _together(pairs: PairCounts, slots: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    gains = np.diagonal(pairs, axis1=1, axis2=2).astype(np.float64)
    chosen = np.zeros(gains.shape, bool)
    sizes = np.asarray(slots)
    for step in range(max(slots, default=0)):
        layers = np.flatnonzero(sizes > step)
        best = np.argmax(gains[layers], axis=1)
        chosen[layers, best] = True
        gains[layers] += pairs[layers, best]
        gains[layers, best] = -np.inf
    return tuple(tuple(np.flatnonzero(row).tolist()) for row in chosen)
