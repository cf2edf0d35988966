"""What can be had with knowledge of the future: the bar that policies are measured against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from ktd.simulate.workload import Workload


@dataclass(frozen=True, slots=True, eq=False)
class Clairvoyant:
    """Best static sets.

    Attributes:
        hit_rates: Of each phase's own best set.
        hit_rate: Those weighted by the phases' tokens.
        moves: To go from the even prefix through the phases' sets.
        static_hit_rate: Of the one set that is best over the whole workload.
        sets: bool ``[layers, experts]`` per phase.
    """

    hit_rates: tuple[float, ...]
    hit_rate: float
    moves: int
    static_hit_rate: float
    sets: tuple[NDArray[np.bool_], ...]


def clairvoyant(workload: Workload, slots: Sequence[int]) -> Clairvoyant:
    """The best sets under ``slots`` per layer, their rates, and the moves between them."""
    counted = [workload.counts(phase) for phase in range(len(workload.phases))]
    sets = tuple(best_set(counts, slots) for counts in counted)
    rates = tuple(hit_rate(counts, chosen) for counts, chosen in zip(counted, sets, strict=True))
    tokens = [phase.tokens for phase in workload.phases]
    before = prefix(slots, workload.num_experts)
    moves = 0
    for chosen in sets:
        moves += int((chosen & ~before).sum())
        before = chosen
    total = np.sum(counted, axis=0)
    return Clairvoyant(
        hit_rates=rates,
        hit_rate=float(np.average(rates, weights=tokens)),
        moves=moves,
        static_hit_rate=hit_rate(total, best_set(total, slots)),
        sets=sets,
    )


def best_set(counts: NDArray[np.int64], slots: Sequence[int]) -> NDArray[np.bool_]:
    """The most used experts of each layer; of equal counts the lower id."""
    order = np.argsort(-counts, axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(counts.shape[1])[None, :], axis=1)
    chosen: NDArray[np.bool_] = ranks < np.array(slots)[:, None]
    return chosen


def prefix(slots: Sequence[int], num_experts: int) -> NDArray[np.bool_]:
    """The lowest ids of each layer: where every replay starts."""
    chosen: NDArray[np.bool_] = np.arange(num_experts)[None, :] < np.array(slots)[:, None]
    return chosen


def hit_rate(counts: NDArray[np.int64], mapped: NDArray[np.bool_]) -> float:
    """Share of the pairs that ``mapped`` computes in slots; 0 if nothing was counted."""
    total = int(counts.sum())
    return float(counts[mapped].sum()) / total if total else 0.0
