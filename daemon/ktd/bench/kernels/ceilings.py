"""The ceilings of this host: how fast it reads memory, and how fast each unit computes."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ktd.errors import DoesNotFit
from ktd.experts import _native

_AHEAD = (512, 4096, 8192, 16384)  # bytes between a load and its prefetch: which is best differs
_SWEEP_SECONDS = 0.02
_FINAL_SECONDS = 0.04
_FINALISTS = 6
_FINAL_ROUNDS = 7
_PEAK_SECONDS = 0.03
_PEAK_ROUNDS = 3
_SLICE = 1e-3
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Rate:
    """One sample.

    Attributes:
        typical: Median over slices of time: what other work takes now and then does not lower it.
        mean: Over the whole time.
        on_core: Share of the time in which the threads had a core.
    """

    typical: float
    mean: float
    on_core: float


@dataclass(frozen=True, slots=True)
class Peak:
    """One unit: operations a second of one thread and of all, and a cycle of one core."""

    unit: str
    one: float
    all: float
    per_cycle: float

    def as_json(self) -> dict[str, float]:
        """For ``--json``."""
        return {
            "one_tflops": self.one / 1e12,
            "all_tflops": self.all / 1e12,
            "operations_per_cycle": self.per_cycle,
        }


@dataclass(frozen=True, slots=True)
class CeilingTable:
    """What the sweep at the beginning found.

    Attributes:
        threads: The number of threads with which memory is read fastest.
        dram: Bytes a second by number of threads, each with the best prefetch distance.
        ahead: That distance, by number of threads.
        peaks: By unit.
        core_hz: Cycles a second of one core that computes.
    """

    threads: int
    dram: dict[int, float]
    ahead: dict[int, int]
    peaks: dict[str, Peak]
    core_hz: float

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "dram_read_gbps": self.dram[self.threads] / 1e9,
            "dram_read_threads": self.threads,
            "dram_read_gbps_by_threads": {str(n): rate / 1e9 for n, rate in self.dram.items()},
            "core_ghz": self.core_hz / 1e9,
            "peaks": {name: peak.as_json() for name, peak in self.peaks.items()},
        }


class HostCeilings:
    """Samples them; the figures of a host move from minute to minute, so ask close to the use.

    Args:
        size: Bytes of memory to read.
        cpus: CPUs that may be used, one thread each; empty: one of each core.

    Raises:
        DoesNotFit: The memory cannot be mapped.
    """

    def __init__(self, size: int, cpus: list[int] | None = None) -> None:
        try:
            self._native = _native.Ceilings(size, cpus or [])
        except MemoryError as error:
            raise DoesNotFit(
                f"the host has no memory for the {size / _GIB:.2f} GiB that the read loop reads: "
                "free memory",
                required_bytes=str(size),
            ) from error
        self.threads = self._native.threads
        self.table = CeilingTable(1, {}, {}, {}, 0.0)
        self._on_core: list[float] = []

    @property
    def on_core(self) -> float:
        """Share of the time in which the threads of the samples had a core, median of all."""
        return statistics.median(self._on_core)

    def sweep(self, progress: Callable[[str], None]) -> None:
        """Fills ``table``: every number of threads, every unit."""
        progress(f"reading memory with 1 to {self.threads} threads")
        rates: dict[tuple[int, int], list[float]] = {
            (threads, ahead): [self._read(threads, _SWEEP_SECONDS, ahead, _SLICE).typical]
            for threads in range(1, self.threads + 1)
            for ahead in _AHEAD
        }
        finalists = sorted(rates, key=lambda key: rates[key][0])[-_FINALISTS:]
        for key in finalists:
            rates[key].clear()
        for _ in range(_FINAL_ROUNDS):
            for threads, ahead in finalists:
                rate = self._read(threads, _FINAL_SECONDS, ahead, _SLICE)
                rates[threads, ahead].append(rate.typical)
        medians = {key: statistics.median(values) for key, values in rates.items()}
        best = max(finalists, key=medians.__getitem__)
        distances = dict(sorted(medians, key=medians.__getitem__))  # the best of a count is last
        distances[best[0]] = best[1]
        dram = {threads: medians[threads, distances[threads]] for threads in sorted(distances)}
        progress("computing out of registers")
        peaks = {
            row["name"]: self._peak(row["name"]) for row in _native.peaks() if row["supported"]
        }
        hz = max(self._native.core_hz(_PEAK_SECONDS) for _ in range(_PEAK_ROUNDS))
        self.table = CeilingTable(best[0], dram, distances, peaks, hz)

    def dram(self, seconds: float, slices: float, threads: int = 0) -> Rate:
        """Bytes a second now, of so many threads (0: of the best number), in slices of seconds."""
        count = threads or self.table.threads
        return self._read(count, seconds, self.table.ahead[count], slices)

    def passes(self, threads: int, size: int, seconds: float) -> list[float]:
        """Seconds of each of some plain reads of ``size`` bytes that all threads end together."""
        return self._native.read_passes(threads, size, seconds, self.table.ahead[threads])

    def peak(self, unit: str, seconds: float, slices: float) -> Rate:
        """Operations a second now, of all threads."""
        return self._note(Rate(*self._native.peak_rate(unit, self.threads, seconds, slices)))

    def _read(self, threads: int, seconds: float, ahead: int, slices: float) -> Rate:
        return self._note(Rate(*self._native.read_rate(threads, seconds, ahead, slices)))

    def _note(self, rate: Rate) -> Rate:
        self._on_core.append(rate.on_core)
        return rate

    def _peak(self, unit: str) -> Peak:
        # The largest of a few: other work on the host only ever takes away.
        ones, alls, cycles = [], [], []
        for _ in range(_PEAK_ROUNDS):
            hz = self._native.core_hz(_PEAK_SECONDS / 2)
            ones.append(Rate(*self._native.peak_rate(unit, 1, _PEAK_SECONDS, _SLICE)).typical)
            hz = max(hz, self._native.core_hz(_PEAK_SECONDS / 2))
            cycles.append(ones[-1] / hz)
            alls.append(self.peak(unit, _PEAK_SECONDS, _SLICE).typical)
        return Peak(unit, max(ones), max(alls), statistics.median(cycles))
