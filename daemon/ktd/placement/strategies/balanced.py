"""``balanced``: the most bytes kept off the CPU, with every layer kept adaptable."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ktd.placement.strategies.base import (
    Choice,
    Evidence,
    even_split,
    heads,
    ranked,
    without_statistics,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ktd.placement.strategies.base import Table


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
        order = ranked(counts)
        shares = np.take_along_axis(_shares(counts), order, axis=1)
        floors = _floors(shares, floor_total(num_layers, num_experts, budget))
        ceiling = num_experts - (budget <= num_layers * (num_experts - 1))
        places = np.arange(num_experts)
        layers, beyond = np.nonzero((places >= floors[:, None]) & (places < ceiling))
        best = ranked(shares[layers, beyond])[: budget - int(floors.sum())]
        sizes = floors + np.bincount(layers[best], minlength=num_layers)
        return Choice(heads(order, sizes))

    def live(self, num_experts: int, slots: Sequence[int], evidence: Evidence) -> Choice:
        """The experts of each layer that its slots keep off the CPU most often."""
        del num_experts
        counts = evidence.counted
        if counts is None:
            return without_statistics(self.name, slots)
        return Choice(heads(ranked(counts), slots))


def floor_total(num_layers: int, num_experts: int, budget: int) -> int:
    """Slots that are given out before gains count: one a layer, then half of the rest.

    All that leave one expert a layer on the CPU, where the budget is larger than that.
    """
    if budget <= num_layers:
        return budget
    below_full = num_layers * (num_experts - 1)
    return below_full if budget > below_full else num_layers + (budget - num_layers) // 2


def _shares(counts: Table) -> Table:
    """Of each layer's counts; all alike where it has none."""
    totals = counts.sum(axis=1, keepdims=True)
    return np.where(totals > 0, counts / np.where(totals > 0, totals, 1), 1 / counts.shape[1])


def _floors(shares: Table, total: int) -> Table:
    """``total`` slots, evenly; what is left over goes where the next expert gains most.

    ``shares`` are sorted, the highest first.
    """
    each, rest = divmod(total, len(shares))
    floors = np.full(len(shares), each)
    if rest:
        floors[ranked(shares[:, each])[:rest]] += 1
    return floors
