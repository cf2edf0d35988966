"""One cell of the table: kernel and ceilings in turn, so that both meet the same minute."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field

from ktd.bench.kernels.calls import Call, Calls
from ktd.bench.kernels.ceilings import HostCeilings, Rate
from ktd.bench.kernels.spread import Spread, quantile
from ktd.bench.kernels.units import best_unit

_WINDOW = 0.03  # seconds of calls between two samples of the ceilings
_DRAM = 0.02  # seconds of a sample; longer beside long calls, see _SAMPLE_SHARE
_PEAK = 0.01
_SAMPLE_SHARE = 0.2  # of a call: what other work takes away within a tick must not decide
_LONGEST_SAMPLE = 0.2
_SHORTEST_SLICE = 1e-3  # seconds of a ceiling of which the median is taken
_SLICE_SHARE = 0.2  # of a sample, at most
_FEWEST_WINDOWS = 3
_OVERTIME = 4.0  # a cell of slow calls ends after this many times its seconds
_MATTERS = 0.5  # a ceiling below this share of the floor is not sampled again and again
_MOST_PASS = 1 << 30
_PASSES = 4  # of the read loop in a turn, at least
_LONGEST_PASSES = 1.0  # seconds
_FEWEST_PASSES = 10  # fewer have no tail


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
class Sample:
    """A ceiling as it typically is, and with everything that came in between."""

    typical: Ceiling
    mean: Ceiling

    def between(self, other: Sample) -> Sample:
        """As of Ceiling."""
        return Sample(self.typical.between(other.typical), self.mean.between(other.mean))


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
        floor_fraction: Floor over time: a typical ceiling over a typical call.
        mean_fraction: The same of means: all floors of a turn over all its time.
        memory_bound: Which of the two floors is the higher.
        unit: The arithmetic unit of the floor.
        many_from: Tokens of an expert from which the pool takes its kernel for many.
        ceiling: Medians of what was sampled.
        read_tail: p99 over median of the plain read loop, over passes of the call's size; None if
            there was time for a few only.
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
    mean_fraction: Spread
    memory_bound: bool
    unit: str
    many_from: int
    ceiling: Ceiling
    read_tail: float | None
    curve_fraction: Spread
    curve_dram: float


@dataclass(slots=True)
class _Samples:
    """What the turns of a cell have found so far."""

    calls: list[Call] = field(default_factory=list)
    passes: list[float] = field(default_factory=list)
    fractions: list[float] = field(default_factory=list)
    means: list[float] = field(default_factory=list)
    floors: list[float] = field(default_factory=list)
    curve: list[float] = field(default_factory=list)
    curve_dram: list[float] = field(default_factory=list)
    ceilings: list[Sample] = field(default_factory=list)


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
        self._dram_seconds, self._peak_seconds = _DRAM, _PEAK
        self._slice = _SHORTEST_SLICE

    def run(self, seconds: float) -> CellFigures:
        """Takes turns for about ``seconds``."""
        self._choose_samples(self._calls.window(_WINDOW)[0])
        found = _Samples()
        began = time.perf_counter()
        while self._goes_on(len(found.fractions), time.perf_counter() - began, seconds):
            self._turn(found)
        return self._figures(found)

    def _turn(self, found: _Samples) -> None:
        before = self._sample()
        calls = self._calls.window(_WINDOW)
        after = self._sample()
        sample = before.between(after)
        operations = self._calls.operations
        floors = [sample.typical.floor(call.bytes, operations) for call in calls]
        means = [sample.mean.floor(call.bytes, operations) for call in calls]
        found.means.append(sum(means) / sum(call.seconds for call in calls))
        found.floors.append(statistics.median(floors))
        found.fractions.append(
            statistics.median(
                floor / call.seconds for floor, call in zip(floors, calls, strict=True)
            )
        )
        own = self._own_dram(sample.typical)
        rate = statistics.median(call.bytes / call.seconds for call in calls)
        found.curve.append(rate / own)
        found.curve_dram.append(own)
        found.ceilings += (before, after)
        found.calls += calls
        # The first pass finds the threads of the loop just woken.
        size = min(_MOST_PASS, calls[0].bytes)
        seconds = min(max(_WINDOW, _PASSES * size / own), _LONGEST_PASSES)
        found.passes += self._ceilings.passes(self._threads, size, seconds)[1:]

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
        share = min(_LONGEST_SAMPLE, _SAMPLE_SHARE * call.seconds)
        self._dram_seconds, self._peak_seconds = max(_DRAM, share), max(_PEAK, share)
        # As long as a call, so that what it cannot avoid is in a slice as well.
        self._slice = min(max(_SHORTEST_SLICE, call.seconds), _SLICE_SHARE * self._peak_seconds)

    def _sample(self) -> Sample:
        dram = Rate(self._first.dram, self._first.dram, 1.0)
        peak = Rate(self._first.peak, self._first.peak, 1.0)
        if self._sample_dram:
            dram = self._ceilings.dram(self._dram_seconds, self._slice)
        if self._sample_peak:
            peak = self._ceilings.peak(self._unit, self._peak_seconds, self._slice)
        return Sample(Ceiling(dram.typical, peak.typical), Ceiling(dram.mean, peak.mean))

    def _own_dram(self, ceiling: Ceiling) -> float:
        if self._threads == self._ceilings.table.threads:
            return ceiling.dram
        return self._ceilings.dram(self._dram_seconds, self._slice, self._threads).typical

    def _figures(self, found: _Samples) -> CellFigures:
        times = [call.seconds for call in found.calls]
        size = statistics.median(call.bytes for call in found.calls)
        ceiling = Ceiling(
            statistics.median(sample.typical.dram for sample in found.ceilings),
            statistics.median(sample.typical.peak for sample in found.ceilings),
        )
        enough = len(found.passes) >= _FEWEST_PASSES
        tail = quantile(found.passes, 0.99) / statistics.median(found.passes) if enough else None
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
            mean_fraction=Spread.of(found.means),
            memory_bound=size / ceiling.dram >= self._calls.operations / ceiling.peak,
            unit=self._unit,
            many_from=self._calls.pool.native.many_from(self._calls.layers.format.value),
            ceiling=ceiling,
            read_tail=tail,
            curve_fraction=Spread.of(found.curve),
            curve_dram=statistics.median(found.curve_dram),
        )
