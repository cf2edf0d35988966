"""What the expert grid shows, as pure values: heat and GPU markers, aggregated to fit."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ktd_tui.palette import heat_index


@dataclass(frozen=True, slots=True)
class GridRow:
    """One layer before it is fitted: heat per expert, and which experts are in slots."""

    layer: int
    heat: Sequence[float]
    gpu_experts: Collection[int] = ()


@dataclass(frozen=True, slots=True)
class GridCell:
    """One cell: a palette index, and the share of its experts that are in slots (0 to 1)."""

    heat: int
    resident: float


@dataclass(frozen=True, slots=True)
class Layout:
    """How experts map to columns: ``group`` experts share a cell of ``width`` columns."""

    group: int
    width: int

    @classmethod
    def fitting(cls, experts: int, columns: int) -> Layout:
        """The roomiest layout in which ``experts`` fit into ``columns``."""
        columns = max(1, columns)
        if 2 * experts <= columns:
            return cls(1, 2)
        return cls(max(1, -(-experts // columns)), 1)

    @classmethod
    def unfolded(cls) -> Layout:
        """One cell for each expert however many there are; the grid scrolls."""
        return cls(1, 2)

    def columns(self, experts: int) -> int:
        """Columns that ``experts`` take."""
        return -(-experts // self.group) * self.width


def cells(row: GridRow, layout: Layout) -> list[GridCell]:
    """The cells of one layer. Heat is relative to the layer's hottest cell."""
    resident = set(row.gpu_experts)
    groups = [
        range(start, min(start + layout.group, len(row.heat)))
        for start in range(0, len(row.heat), layout.group)
    ]
    sums = [sum(row.heat[expert] for expert in group) for group in groups]
    top = max(sums, default=0.0)
    return [
        GridCell(
            heat_index(total / top if top > 0 else 0.0),
            sum(expert in resident for expert in group) / len(group),
        )
        for total, group in zip(sums, groups, strict=True)
    ]
