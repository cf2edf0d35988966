"""One cell of the table: kernel and ceilings in turn, so that both meet the same minute."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field

from ktd.bench.kernels.calls import Call, Calls
from ktd.bench.kernels.ceilings import HostCeilings
from ktd.bench.kernels.spread import Spread, quantile
from ktd.bench.kernels.units import best_unit

_WINDOW = 0.03  # seconds of calls between two samples of the ceilings
_DRAM = 0.02
_PEAK = 0.01
_FEWEST_WINDOWS = 3
_OVERTIME = 4.0  # a cell of slow calls ends after this many times its seconds
_MATTERS = 0.5  # a ceiling below this share of the floor is not sampled again and again
_MOST_PASS = 1 << 30


@dataclass(frozen=True, slots=True)
class Ceiling:
    """Bytes and operations a second at one moment."""

    dram: float
    peak: float

    def floor(self, call_bytes: int, operations: int) -> float:
        """Seconds that a call cannot be faster than."""
        return max(call_bytes / self.dram, operations / self.peak)

    def between(self, other: Ceiling) -> Ceiling:
        """What held while the two were taken before and after."""
        return Ceiling((self.dram + other.dram) / 2, (self.peak + other.peak) / 2)


@dataclass(frozen=True, slots=True)
class CellFigures:
    """What a cell measured.

    Attributes:
        calls: Calls that were timed.
        windows: Turns of kernel and ceilings.
        median: Seconds of a call.
        p99: The same, 99th percentile (the longest of fewer than 100 calls).
        bandwidth: Bytes of distinct experts a second, median of the calls.
        operations: Operations a second, median of the calls.
        call_bytes: Bytes of the distinct experts of a call, median.
        floor: Seconds, median of the windows.
        floor_fraction: Floor over time.
        memory_bound: Which of the two floors is the higher.
        unit: The arithmetic unit of the floor.
        many_from: Tokens of an expert from which the pool takes its kernel for many.
        ceiling: Medians of what was sampled.
        read_tail: p99 over median of the plain read loop, over passes of the call's size.
        curve_fraction: Bandwidth over that of the read loop with as many threads.
        curve_dram: Bytes a second of the read loop with as many threads.
    """

    calls: int
    windows: int
    median: float
    p99: float
    bandwidth: float
    operations: float
    call_bytes: float
    floor: float
    floor_fraction: Spread
    memory_bound: bool
    unit: str
    many_from: int
    ceiling: Ceiling
    read_tail: float
    curve_fraction: Spread
    curve_dram: float


@dataclass(slots=True)
class _Samples:
    """What the turns of a cell have found so far."""

    calls: list[Call] = field(default_factory=list)
    passes: list[float] = field(default_factory=list)
    fractions: list[float] = field(default_factory=list)
    floors: list[float] = field(default_factory=list)
    curve: list[float] = field(default_factory=list)
    curve_dram: list[float] = field(default_factory=list)
    ceilings: list[Ceiling] = field(default_factory=list)


class CellMeasurement:
    """Measures one cell.

    Args:
        calls: What is timed.
        ceilings: After their sweep.
    """

    def __init__(self, calls: Calls, ceilings: HostCeilings) -> None:
        self._calls = calls
        self._ceilings = ceilings
        table = ceilings.table
        peaks = {name: peak.all for name, peak in table.peaks.items()}
        self._unit = best_unit(calls.layers.format.value, calls.pool.isa, peaks)
        self._first = Ceiling(table.dram[table.threads], peaks[self._unit])
        # Beyond the cores, more threads of the pool read no faster than one for each.
        self._threads = min(calls.pool.threads, ceilings.threads)
        self._sample_dram = self._sample_peak = True

    def run(self, seconds: float) -> CellFigures:
        """Takes turns for about ``seconds``."""
        call = self._calls.window(_WINDOW)[0]
        self._choose_samples(call)
        found = _Samples()
        began = time.perf_counter()
        while self._goes_on(len(found.fractions), time.perf_counter() - began, seconds):
            self._turn(found)
        return self._figures(found)

    def _turn(self, found: _Samples) -> None:
        before = self._sample()
        calls = self._calls.window(_WINDOW)
        after = self._sample()
        ceiling = before.between(after)
        floors = [ceiling.floor(call.bytes, self._calls.operations) for call in calls]
        found.floors.append(statistics.median(floors))
        found.fractions.append(
            statistics.median(
                floor / call.seconds for floor, call in zip(floors, calls, strict=True)
            )
        )
        own = self._own_dram(ceiling)
        rate = statistics.median(call.bytes / call.seconds for call in calls)
        found.curve.append(rate / own)
        found.curve_dram.append(own)
        found.ceilings += (before, after)
        found.calls += calls
        # The first pass finds the threads of the loop just woken.
        size = min(_MOST_PASS, calls[0].bytes)
        found.passes += self._ceilings.passes(self._threads, size, _WINDOW)[1:]

    def _goes_on(self, windows: int, elapsed: float, seconds: float) -> bool:
        if windows == 0:
            return True
        if windows < _FEWEST_WINDOWS:
            return elapsed < seconds * _OVERTIME
        return elapsed < seconds

    def _choose_samples(self, call: Call) -> None:
        memory = call.bytes / self._first.dram
        compute = self._calls.operations / self._first.peak
        self._sample_dram = memory >= _MATTERS * compute
        self._sample_peak = compute >= _MATTERS * memory

    def _sample(self) -> Ceiling:
        return Ceiling(
            self._ceilings.dram(_DRAM) if self._sample_dram else self._first.dram,
            self._ceilings.peak(self._unit, _PEAK) if self._sample_peak else self._first.peak,
        )

    def _own_dram(self, ceiling: Ceiling) -> float:
        if self._threads == self._ceilings.table.threads:
            return ceiling.dram
        return self._ceilings.dram(_DRAM, self._threads)

    def _figures(self, found: _Samples) -> CellFigures:
        times = [call.seconds for call in found.calls]
        size = statistics.median(call.bytes for call in found.calls)
        ceiling = Ceiling(
            statistics.median(sample.dram for sample in found.ceilings),
            statistics.median(sample.peak for sample in found.ceilings),
        )
        passes = found.passes or [1.0]
        return CellFigures(
            calls=len(times),
            windows=len(found.fractions),
            median=statistics.median(times),
            p99=quantile(times, 0.99),
            bandwidth=statistics.median(call.bytes / call.seconds for call in found.calls),
            operations=self._calls.operations / statistics.median(times),
            call_bytes=size,
            floor=statistics.median(found.floors),
            floor_fraction=Spread.of(found.fractions),
            memory_bound=size / ceiling.dram >= self._calls.operations / ceiling.peak,
            unit=self._unit,
            many_from=self._calls.pool.native.many_from(self._calls.layers.format.value),
            ceiling=ceiling,
            read_tail=quantile(passes, 0.99) / statistics.median(passes),
            curve_fraction=Spread.of(found.curve),
            curve_dram=statistics.median(found.curve_dram),
        )
