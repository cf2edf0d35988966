"""``latency``: the shortest predicted decode step."""

from __future__ import annotations

import heapq
from dataclasses import replace
from typing import TYPE_CHECKING

from ktd.placement.strategies.balanced import Balanced
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

    from ktd.placement.cost import CostModel
    from ktd.placement.strategies.base import Counts

_NO_GAIN = (
    "The cost model predicts no gain from any slot on this machine, so latency ranks as balanced "
    "does."
)


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
        if not any(sizes) and budget:
            fallback = Balanced().initial(num_layers, num_experts, budget, evidence)
            return replace(fallback, notes=(_NO_GAIN,))
        spare = min(budget, num_layers * num_experts) - sum(sizes)
        notes = (f"{spare} slots of the budget stay unused: no step gets shorter with them.",)
        return Choice(tops(counts, sizes), notes if spare else ())

    def live(self, num_experts: int, slots: Sequence[int], evidence: Evidence) -> Choice:
        """As :meth:`initial`, within the slots of each layer.

        Slots that would only lengthen a step stay empty; where none helps, all are filled.
        """
        del num_experts
        counts, uses = evidence.counted, evidence.uses()
        if counts is None or uses is None:
            return without_statistics(self.name, slots)
        costs, size = evidence.costs, evidence.expert_bytes
        wanted = [
            max(_lengths(_savings(use, costs, size)[:most]), default=0)
            for use, most in zip(uses, slots, strict=True)
        ]
        if not any(wanted) and any(slots):
            return Choice(tops(counts, slots), (_NO_GAIN,))
        return Choice(tops(counts, wanted))


def shortest(uses: Counts, budget: int, costs: CostModel, expert_bytes: int) -> list[int]:
    """Slots per layer, at most ``budget`` in all."""
    savings = [_savings(use, costs, expert_bytes) for use in uses]
    rates: list[float] = []
    owners: list[tuple[int, int]] = []
    for layer, of_layer in enumerate(savings):
        begin = 0
        for end, rate in _blocks(of_layer):
            rates.append(rate)
            owners.append((layer, end - begin))
            begin = end
    sizes = [0] * len(uses)
    left = budget
    for index in ranked(rates):
        layer, length = owners[index]
        if length > left:
            break
        sizes[layer] += length
        left -= length
    _fill(sizes, savings, left)
    return sizes


def _fill(sizes: list[int], savings: Sequence[Sequence[float]], left: int) -> None:
    """Gives ``left`` slots out one by one, as long as the next one saves something."""
    heap = [
        (-of_layer[size], layer)
        for layer, (of_layer, size) in enumerate(zip(savings, sizes, strict=True))
        if size < len(of_layer)
    ]
    heapq.heapify(heap)
    while left and heap:
        saving, layer = heap[0]
        if saving >= 0:
            return
        sizes[layer] += 1
        left -= 1
        if sizes[layer] < len(savings[layer]):
            heapq.heapreplace(heap, (-savings[layer][sizes[layer]], layer))
        else:
            heapq.heappop(heap)


def _savings(use: Sequence[float], costs: CostModel, expert_bytes: int) -> list[float]:
    """Seconds that each further slot of a layer saves; ends where no more can be saved."""
    gains = sorted(use, reverse=True)
    cpu, gpu = expert_bytes / costs.cpu_bytes_per_second, expert_bytes / costs.gpu_bytes_per_second
    if not costs.overlap:
        saved = [gain * (cpu - gpu) for gain in gains]
        if saved:
            saved[0] -= costs.gpu_layer_seconds
            saved[-1] += costs.cpu_layer_seconds
        return saved
    on_cpu = costs.cpu_layer_seconds + sum(gains) * cpu
    on_gpu = costs.gpu_layer_seconds
    saved = []
    before = on_cpu
    last = len(gains) - 1
    for index, gain in enumerate(gains):
        on_cpu -= gain * cpu
        on_gpu += gain * gpu
        if index == last:
            on_cpu = 0.0
        now = max(on_cpu, on_gpu)
        saved.append(before - now)
        if on_gpu >= on_cpu:
            break
        before = now
    return saved


def _blocks(savings: Sequence[float]) -> list[tuple[int, float]]:
    """The concave majorant of the summed savings: ends of its pieces and seconds per slot."""
    ends: list[int] = []
    rates: list[float] = []
    for index, saving in enumerate(savings, 1):
        begin, rate, total = index - 1, saving, saving
        while rates and rates[-1] < rate:
            ends.pop()
            start = ends[-1] if ends else 0
            total += rates.pop() * (begin - start)
            begin = start
            rate = total / (index - begin)
        ends.append(index)
        rates.append(rate)
    return [(end, rate) for end, rate in zip(ends, rates, strict=True) if rate > 0]


def _lengths(savings: Sequence[float]) -> list[int]:
    """Ends of the pieces of the majorant: the last is the size that saves most."""
    return [end for end, _ in _blocks(savings)]
