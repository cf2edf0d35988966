"""The layer × expert heat map with a mark on every expert that is in a GPU slot."""

from __future__ import annotations

from functools import lru_cache

from rich.segment import Segment
from rich.style import Style
from textual.geometry import Size
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip

from ktd_tui.grid_model import GridCell, GridRow, Layout, cells
from ktd_tui.palette import HEAT, mark_colour, shade

_LABEL = 5  # columns of "L12  " before the cells
_RULER_STEP = 8
_EMPTY = "  No expert was counted yet; 'ktd chat' sends a request."


class ExpertGrid(ScrollView, can_focus=True):
    """One line per layer. Folded: neighbours share a cell so that all fit; unfolded: it scrolls."""

    DEFAULT_CSS = """
    ExpertGrid { height: 1fr; background: $surface; scrollbar-size: 1 1; }
    """

    rows: reactive[tuple[GridRow, ...]] = reactive((), layout=False)
    folded: reactive[bool] = reactive(True)

    def watch_rows(self) -> None:
        """Shows new values; nothing else on the screen is touched."""
        self._fit()

    def watch_folded(self) -> None:
        """Scrolls back to where the layout begins."""
        self._fit()
        self.scroll_to(0, 0, animate=False)

    def on_resize(self) -> None:
        """Fits the layout to the new width."""
        self._fit()

    @property
    def fit(self) -> Layout:
        """How experts map to columns at this width."""
        if not self.folded:
            return Layout.unfolded()
        return Layout.fitting(self._experts, self.scrollable_content_region.width - _LABEL)

    def render_line(self, y: int) -> Strip:
        """Line ``y`` of what is visible: the ruler first, then layers."""
        width = self.scrollable_content_region.width
        if not self.rows:
            text = _EMPTY if y == 1 else ""
            return Strip([Segment(text, _PLAIN)]).adjust_cell_length(width, _PLAIN)
        if y == 0:
            line, label = self._ruler(), " " * _LABEL
        else:
            index = y - 1 + self.scroll_offset.y
            if index >= len(self.rows):
                last = y == self.scrollable_content_region.height - 1
                return (self._legend() if last else Strip([])).adjust_cell_length(width, _PLAIN)
            row = self.rows[index]
            line, label = self._cells(row), f"L{row.layer}".ljust(_LABEL)
        # Labels stay where they are while the cells scroll sideways.
        start = self.scroll_offset.x
        shown = line.crop(start, start + max(0, width - _LABEL))
        return Strip.join([Strip([Segment(label, _DIM)]), shown]).adjust_cell_length(width, _PLAIN)

    @property
    def _experts(self) -> int:
        return max((len(row.heat) for row in self.rows), default=0)

    def _fit(self) -> None:
        if self.rows:
            width = _LABEL + self.fit.columns(self._experts)
            self.virtual_size = Size(width, len(self.rows) + 1)
        self.refresh()

    def _ruler(self) -> Strip:
        fit = self.fit
        text = ""
        for expert in range(0, self._experts, _RULER_STEP * fit.group):
            at = expert // fit.group * fit.width
            if at >= len(text) + (1 if text else 0):
                text = text.ljust(at) + str(expert)
        columns = fit.columns(self._experts)
        return Strip([Segment(text[:columns].ljust(columns), _DIM)])

    def _legend(self) -> Strip:
        draw = _plain if self.app.no_color else _coloured
        scale = [draw(GridCell(index, 0.0), 1) for index in range(len(HEAT))]
        text = " hot   • in a GPU slot"
        if self.fit.group > 1:
            text += f"   {self.fit.group} experts a cell: • most in slots, · some"
        return Strip([Segment(" " * _LABEL + "cold ", _DIM), *scale, Segment(text, _DIM)])

    def _cells(self, row: GridRow) -> Strip:
        fit = self.fit
        draw = _plain if self.app.no_color else _coloured
        return Strip([draw(cell, fit.width) for cell in cells(row, fit)])


_DIM = Style(dim=True)
_PLAIN = Style()  # Textual's filters want a style on every segment.


def _mark(cell: GridCell) -> str:
    if cell.resident > 1 / 2:
        return "•"
    return "·" if cell.resident else " "


@lru_cache(maxsize=1024)
def _coloured(cell: GridCell, width: int) -> Segment:
    style = Style(color=mark_colour(cell.heat), bgcolor=HEAT[cell.heat])
    return Segment(_mark(cell).ljust(width), style)


@lru_cache(maxsize=1024)
def _plain(cell: GridCell, width: int) -> Segment:
    if width == 1:
        return Segment(_mark(cell) if cell.resident else shade(cell.heat), _PLAIN)
    return Segment((shade(cell.heat) + _mark(cell)).ljust(width), _PLAIN)
