"""What a strategy places at a ratio, when each layer has so many slots and no more."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ktd.bench.table.routing import LayerSizes
from ktd.placement.model import Experts
from ktd.placement.strategies.base import Evidence
from ktd.placement.strategies.registry import initial_placement, strategy_named

STATIC = ("random", "uniform", "front-loading", "frequency")
POLICIES = ("dynamic", "adaptive")
COLUMNS = (*STATIC, *POLICIES)
# Those of the policies that remember: they go on with what they have learned, whatever ran between.
LEARNING = ("adaptive",)
# What a policy begins with.
_BEGINNING = "uniform"


def slots_needed(sizes: LayerSizes, ratio: float) -> int:
    """Of each layer, for cells up to ``ratio``."""
    return min(sizes.experts, -(-budget_of(sizes, ratio) // sizes.layers))


def budget_of(sizes: LayerSizes, ratio: float) -> int:
    """Slots over all layers: KTransformers' rule."""
    return int(sizes.layers * sizes.experts * ratio)


def cell_placement(
    column: str, ratio: float, sizes: LayerSizes, slots: int, known: NDArray[np.int64]
) -> Experts:
    """The experts of one cell, by layer.

    What a strategy would put into a layer beyond its slots goes to the first layers that have
    room: so ``front-loading`` fills layers up to ``slots`` where the largest ratio is below 1.

    Args:
        column: A strategy, or a policy, which begins with ``uniform``.
        ratio: Share of all experts.
        sizes: Of the model.
        slots: Of each layer.
        known: Counts ``[layers, experts]`` for those that want some.
    """
    strategy = column if column in STATIC else _BEGINNING
    budget = budget_of(sizes, ratio)
    chosen = initial_placement(strategy, sizes.layers, sizes.experts, budget, known).experts
    wanted = [len(layer) for layer in chosen]
    if max(wanted, default=0) <= slots:
        return chosen
    allowed = [min(count, slots) for count in wanted]
    over = sum(wanted) - sum(allowed)
    for layer, count in enumerate(allowed):
        more = min(over, slots - count)
        allowed[layer] += more
        over -= more
    evidence = Evidence(counts=known)
    return strategy_named(strategy).live(sizes.experts, allowed, evidence).experts
