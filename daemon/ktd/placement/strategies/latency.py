"""``latency``: the shortest predicted decode step."""

from __future__ import annotations

import heapq
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ktd.placement.strategies.balanced import Balanced
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

    from ktd.placement.cost import CostModel
    from ktd.placement.strategies.base import Table

_NO_GAIN = (
    "The cost model predicts no gain from any slot on this machine, so latency ranks as balanced "
    "does."
)
# Relative to a layer's time.
_SMALLEST = 1e-12


class Latency:
    """Minimises the predicted time of a decode step at the batch size actually seen.

    Objective: the sum over layers of ``max(CPU time, GPU time)``, each a fixed cost plus expected
    bytes over bandwidth (:mod:`ktd.placement.cost`), for at most ``budget`` experts. A layer that
    is full pays no fixed CPU cost, so a budget may be worth more in a few whole layers than spread.

    Of a layer the experts most often needed go first. Let g(n) be what its n-th slot saves. While
    the CPU is the longer side, g falls with n; beyond that point more slots save nothing. Only the
    last slot (and the first one, where slots and CPU do not overlap) breaks that order. The
    concave majorant of a layer's savings cuts it into blocks of falling savings per slot; taking
    blocks by that rate is optimal for every budget at which a block ends (each is an optimum of
    the Lagrangian; H. Everett, 1963), and misses the optimum by less than one block's savings
    otherwise. What is left of the budget goes to single slots by what they save.
    """

    name = "latency"

    def initial(self, num_layers: int, num_experts: int, budget: int, evidence: Evidence) -> Choice:
        """See :class:`~ktd.placement.strategies.base.Strategy`."""
        counts, uses = evidence.counted, evidence.uses()
        if counts is None or uses is None:
            return without_statistics(self.name, even_split(num_layers, num_experts, budget))
        sizes = shortest(uses, budget, evidence.costs, evidence.expert_bytes)
        if not sizes.any() and budget:
            fallback = Balanced().initial(num_layers, num_experts, budget, evidence)
            return replace(fallback, notes=(_NO_GAIN,))
        spare = min(budget, num_layers * num_experts) - int(sizes.sum())
        notes = (f"{spare} slots of the budget stay unused: no step gets shorter with them.",)
        return Choice(heads(ranked(counts), sizes), notes if spare else ())

    def live(self, num_experts: int, slots: Sequence[int], evidence: Evidence) -> Choice:
        """As :meth:`initial`, within the slots of each layer.

        Slots that would only lengthen a step stay empty; where none helps, all are filled.
        """
        counts, uses = evidence.counted, evidence.uses()
        if counts is None or uses is None:
            return without_statistics(self.name, slots)
        most = np.asarray(slots)
        saved = np.cumsum(savings_of(uses, evidence.costs, evidence.expert_bytes), axis=1)
        saved[np.arange(num_experts) >= most[:, None]] = -np.inf
        # The smallest size that saves most.
        sizes = np.where(saved.max(axis=1) > 0, saved.argmax(axis=1) + 1, 0)
        if not sizes.any() and any(slots):
            return Choice(heads(ranked(counts), slots), (_NO_GAIN,))
        return Choice(heads(ranked(counts), sizes))


def shortest(uses: Table, budget: int, costs: CostModel, expert_bytes: int) -> Table:
    """Slots per layer, at most ``budget`` in all."""
    savings = savings_of(uses, costs, expert_bytes)
    rates, lengths = _blocks(savings)
    layers, ends = np.nonzero(rates > 0)
    rates, lengths = rates[layers, ends], lengths[layers, ends]
    order = ranked(rates)
    fitting = int(np.searchsorted(np.cumsum(lengths[order]), budget, side="right"))
    taken = order[:fitting]
    sizes = np.zeros(len(uses), np.int64)
    np.add.at(sizes, layers[taken], lengths[taken])
    _fill(sizes, savings, budget - int(sizes.sum()))
    return sizes


def savings_of(uses: Table, costs: CostModel, expert_bytes: int) -> Table:
    """Seconds that each further slot of a layer saves, ``[layers, experts]``; may be negative."""
    gains = -np.sort(-uses, axis=1) * expert_bytes
    in_slots = np.zeros((len(uses), uses.shape[1] + 1))
    np.cumsum(gains, axis=1, out=in_slots[:, 1:])
    rate = costs.cpu_bytes_per_second / costs.cpu_share
    on_cpu = (in_slots[:, -1:] - in_slots) / rate + costs.cpu_layer_seconds
    on_cpu[:, -1] = 0.0
    on_gpu = in_slots / costs.gpu_bytes_per_second + costs.gpu_layer_seconds
    on_gpu[:, 0] = 0.0
    seconds = np.maximum(on_cpu, on_gpu) if costs.overlap else on_cpu + on_gpu
    # Below this, equal bytes at equal rates would differ by how they were rounded.
    saved = -np.diff(seconds, axis=1)
    saved[np.abs(saved) < _SMALLEST * seconds.max(initial=0.0)] = 0.0
    return saved


def _blocks(savings: Table) -> tuple[Table, Table]:
    """The concave majorant of each layer's summed savings, at the ends of its pieces.

    As only the first and the last slot break the falling order, it is the tangent from no slot,
    then single slots, then the tangent to all slots.

    Returns:
        Savings per slot ``[layers, experts]``, -inf where no piece ends; and slots of the piece.
    """
    layers, experts = savings.shape
    rows, places = np.arange(layers), np.arange(1, experts + 1)
    summed = np.cumsum(savings, axis=1)
    rates, lengths = savings.copy(), np.ones(savings.shape, np.int64)
    slopes = summed / places
    first = slopes.argmax(axis=1)
    # Slots below the tangent's end are inside of its piece.
    rates[places - 1 < first[:, None]] = -np.inf
    rates[rows, first], lengths[rows, first] = slopes[rows, first], first + 1
    with np.errstate(divide="ignore", invalid="ignore"):
        slopes = (summed[:, -1:] - summed) / (experts - places)
    slopes[places - 1 < first[:, None]] = np.inf
    slopes[:, -1] = np.inf
    last = slopes.argmin(axis=1)
    merged = np.flatnonzero(first < experts - 1)
    inside = (places - 1 > last[:, None]) & (first[:, None] < experts - 1)
    rates[inside] = -np.inf
    rates[merged, -1] = slopes[merged, last[merged]]
    lengths[merged, -1] = experts - 1 - last[merged]
    return rates, lengths


def _fill(sizes: Table, savings: Table, left: int) -> None:
    """Gives ``left`` slots out one by one, as long as the next one saves something."""
    most = savings.shape[1]
    heap = [
        (-savings[layer, size], layer) for layer, size in enumerate(sizes.tolist()) if size < most
    ]
    heapq.heapify(heap)
    while left and heap:
        saving, layer = heap[0]
        if saving >= 0:
            return
        sizes[layer] += 1
        left -= 1
        if sizes[layer] < most:
            heapq.heapreplace(heap, (-savings[layer, sizes[layer]], layer))
        else:
            heapq.heappop(heap)
