"""The roofline of a report: what is drawn, whatever draws it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ktd.bench.kernels.result import Report

_DECADE = 10.0


@dataclass(frozen=True, slots=True)
class Point:
    """One cell: operations a byte, operations a second, and its label."""

    x: float
    y: float
    label: str
    series: str


@dataclass(frozen=True, slots=True)
class Roof:
    """What one unit lets through: the slope of the memory, then the unit's peak."""

    name: str
    bandwidth: float
    peak: float

    @property
    def ridge(self) -> float:
        """Operations a byte at which the memory stops being the bound."""
        return self.peak / self.bandwidth


@dataclass(frozen=True, slots=True)
class Roofline:
    """Points under roofs, on logarithmic axes that hold them all."""

    title: str
    points: tuple[Point, ...]
    roofs: tuple[Roof, ...]

    @classmethod
    def of(cls, report: Report) -> Roofline:
        """Of at least one result."""
        points = tuple(
            Point(
                x=row.figures.operations * row.figures.median / row.figures.call_bytes,
                y=row.figures.operations,
                label=f"{row.shape.name} {row.format} {row.isa}, {row.tokens} tokens",
                series=f"{row.shape.name} {row.format} {row.isa}",
            )
            for row in report.results
        )
        table = report.ceilings
        bandwidth = table.dram[table.threads]
        units = dict.fromkeys(row.figures.unit for row in report.results)
        roofs = tuple(Roof(unit, bandwidth, table.peaks[unit].all) for unit in units)
        return cls(f"{report.host.cpu}, {bandwidth / 1e9:.0f} GB/s", points, roofs)

    @property
    def x_range(self) -> tuple[float, float]:
        """Whole decades."""
        return _decades([p.x for p in self.points] + [roof.ridge for roof in self.roofs])

    @property
    def y_range(self) -> tuple[float, float]:
        """Whole decades."""
        return _decades([p.y for p in self.points] + [roof.peak for roof in self.roofs])


def _decades(values: list[float]) -> tuple[float, float]:
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return _DECADE**low, _DECADE ** max(high, low + 1)
