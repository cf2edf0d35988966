"""Medians with their spread, as every benchmark prints them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Summary:
    """Median, smallest and largest of a few measurements."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        """Summarises at least one value."""
        return cls(statistics.median(values), min(values), max(values), len(values))

    def text(self, digits: int = 1) -> str:
        """For example ``88.2 (85.0 to 90.1, 5 runs)``."""
        return (
            f"{self.median:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f},"
            f" {self.count} runs)"
        )


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds of many events."""

    mean: float
    p50: float
    p99: float
    highest: float
    count: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latency:
        """Summarises times in seconds; zeros for none."""
        if not seconds:
            return cls(0.0, 0.0, 0.0, 0.0, 0)
        ordered = sorted(seconds)
        return cls(
            mean=1e3 * statistics.fmean(ordered),
            p50=1e3 * percentile(ordered, 0.5),
            p99=1e3 * percentile(ordered, 0.99),
            highest=1e3 * ordered[-1],
            count=len(ordered),
        )

    def text(self) -> str:
        """For example ``p50 8.1, p99 12.0, highest 14.7 ms``."""
        return f"p50 {self.p50:.1f}, p99 {self.p99:.1f}, highest {self.highest:.1f} ms"


def percentile(ordered: Sequence[float], share: float) -> float:
    """Of at least one ascending value, between neighbours where it lies between them."""
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])
