"""Pairs the experts that should leave their slots with those that should enter, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ktd.policy.base import Mapped

FREE = -1


@dataclass(frozen=True, slots=True, eq=False)
class Exchanges:
    """Candidates, the best of each layer first, so that any leading part of a row is consistent.

    Attributes:
        load: Experts ``[layers, n]`` to load, by falling score.
        evict: Experts ``[layers, n]`` to evict for them, by rising score; -1 is a free slot.
        score_load: Their scores; -inf where there is no candidate.
        score_evict: Their scores; 0 for a free slot.
        valid: Whether there is a candidate.
    """

    load: NDArray[np.int64]
    evict: NDArray[np.int64]
    score_load: NDArray[np.float64]
    score_evict: NDArray[np.float64]
    valid: NDArray[np.bool_]


def candidates(
    scores: NDArray[np.float64],
    mapped: Mapped,
    slots: NDArray[np.int64],
    fixed: Mapped | None = None,
) -> Exchanges:
    """All candidates under ``slots`` per layer; ``fixed`` experts stay where they are."""
    fixed = np.zeros_like(mapped) if fixed is None else fixed
    entering = np.where(mapped | fixed, -np.inf, scores)
    # A layer has as many columns as experts, and as many again for slots that are free.
    free = slots - mapped.sum(axis=1)
    width = int(free.max(initial=0))
    empty = np.where(np.arange(width) < free[:, None], 0.0, np.inf)
    leaving = np.concatenate([empty, np.where(mapped & ~fixed, scores, np.inf)], axis=1)
    load = np.argsort(-entering, axis=1, kind="stable")
    evict = np.argsort(leaving, axis=1, kind="stable")[:, : load.shape[1]]
    score_load = np.take_along_axis(entering, load, 1)
    score_evict = np.take_along_axis(leaving, evict, 1)
    valid = np.isfinite(score_load) & np.isfinite(score_evict)
    used = max(1, int(valid.sum(axis=1).max(initial=0)))
    evict = np.where(evict < width, FREE, evict - width)
    return Exchanges(
        load[:, :used],
        evict[:, :used],
        score_load[:, :used],
        np.where(valid, score_evict, 0.0)[:, :used],
        valid[:, :used],
    )
