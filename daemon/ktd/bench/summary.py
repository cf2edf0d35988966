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
