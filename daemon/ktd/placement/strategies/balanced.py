"""``balanced``: the most bytes kept off the CPU, with every layer kept adaptable."""

from __future__ import annotations

from itertools import repeat
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


class Balanced:
    """Maximises the expected bytes per decode step that the CPU need not read.

    Objective: the sum over chosen experts of ``u * bytes``, u the probability that a decode step
    needs the expert (:func:`~ktd.placement.cost.expected_use`), for at most ``budget`` experts with
    a floor and a ceiling per layer. As u grows with the expert's share of its layer's counts, and
    in the same way in every layer, ranking by that share is the optimum at every batch size.
    Against ``frequency``: layers count alike even if one was counted more often, and none is left
    empty or full, which it would stay until a restart.

    The floor of a layer is one slot, then half of what an even split would give it beyond that. The
    ceiling is all experts but one, until the budget is larger than that in every layer.

    The gain of a layer's n-th best expert falls with n, so taking the highest gains first within
    the bounds is the optimum (B. Fox, *Discrete optimization via marginal analysis*, 1966); each
    budget's choice contains that of every smaller one.
    """

    name = "balanced"

    def initial(self, num_layers: int, num_experts: int, budget: int, evidence: Evidence) -> Choice:
        """See :class:`~ktd.placement.strategies.base.Strategy`."""
        counts = evidence.counted
        if counts is None:
            return without_statistics(self.name, even_split(num_layers, num_experts, budget))
        shares = [_shares(row) for row in counts]
        orders = [ranked(row) for row in counts]
        floors = _floors(shares, orders, floor_total(num_layers, num_experts, budget))
        ceiling = num_experts - (budget <= num_layers * (num_experts - 1))
        gains: list[float] = []
        owners: list[int] = []
        for layer, (share, order, floor) in enumerate(zip(shares, orders, floors, strict=True)):
            gains.extend(map(share.__getitem__, order[floor:ceiling]))
            owners.extend(repeat(layer, ceiling - floor))
        sizes = list(floors)
        for index in ranked(gains)[: budget - sum(floors)]:
            sizes[owners[index]] += 1
        return Choice(
            tuple(tuple(sorted(order[:size])) for order, size in zip(orders, sizes, strict=True))
        )

    def live(self, num_experts: int, slots: Sequence[int], evidence: Evidence) -> Choice:
        """The experts of each layer that its slots keep off the CPU most often."""
        del num_experts
        if evidence.counted is None:
            return without_statistics(self.name, slots)
        return Choice(tops(evidence.counted, slots))


def floor_total(num_layers: int, num_experts: int, budget: int) -> int:
    """Slots that are given out before gains count: one a layer, then half of the rest.

    All that leave one expert a layer on the CPU, where the budget is larger than that.
    """
    if budget <= num_layers:
        return budget
    below_full = num_layers * (num_experts - 1)
    return below_full if budget > below_full else num_layers + (budget - num_layers) // 2


def _shares(counts: Sequence[float]) -> list[float]:
    """Of a layer's counts; all alike where it has none."""
    total = sum(counts)
    return [count / total for count in counts] if total else [1 / len(counts)] * len(counts)


def _floors(
    shares: Sequence[Sequence[float]], orders: Sequence[Sequence[int]], total: int
) -> list[int]:
    """``total`` slots, evenly; what is left over goes where the next expert gains most."""
    each, rest = divmod(total, len(shares)) if shares else (0, 0)
    floors = [each] * len(shares)
    if rest:
        following = [share[order[each]] for share, order in zip(shares, orders, strict=True)]
        for layer in ranked(following)[:rest]:
            floors[layer] += 1
    return floors
