"""Between a placement's tuples and the arrays that policies compute with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ktd.policy.base import Choice

if TYPE_CHECKING:
    from ktd.placement.model import Experts
    from ktd.policy.base import Mapped


def mapped_of(experts: Experts, num_experts: int) -> Mapped:
    """``[layers, experts]``: whether an expert is in a slot."""
    mapped = np.zeros((len(experts), num_experts), bool)
    for layer, chosen in enumerate(experts):
        mapped[layer, list(chosen)] = True
    return mapped


def experts_of(mapped: Mapped) -> Experts:
    """The same as ascending ids per layer."""
    return tuple(tuple(np.flatnonzero(row).tolist()) for row in mapped)


def differences(now: Experts, then: Experts) -> list[Choice]:
    """The exchanges that lead from ``now`` to ``then``, without figures."""
    choices = []
    for layer, (here, there) in enumerate(zip(now, then, strict=True)):
        leaving = sorted(set(here) - set(there))
        for position, load in enumerate(sorted(set(there) - set(here))):
            evict = leaving[position] if position < len(leaving) else None
            choices.append(Choice(layer, evict, load, 0.0, 0.0, 0.0, 0.0, 0.0))
    return choices
