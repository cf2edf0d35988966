"""Draws the tables as SVG: a panel for each, a line for each column."""

from __future__ import annotations

from xml.sax.saxutils import escape

from ktd.bench.table.report import Report

_WIDTH, _HEIGHT = 560, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 16, 40, 48
_COLOURS = ("#999999", "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00")


def table_svg(report: Report) -> str:
    """An SVG document; cells that were not measured are left out."""
    rates = [measured.rate for measured in report.results.values()]
    highest = 1.08 * max(rates, default=1.0)
    panels = [_Panel(report, kind, highest).text() for kind in report.kinds]
    width = _WIDTH * len(panels)
    body = "\n".join(
        f'<g transform="translate({_WIDTH * number} 0)">\n{panel}\n</g>'
        for number, panel in enumerate(panels)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {_HEIGHT}" '
        f'font-family="sans-serif" font-size="12">\n'
        f'<rect width="{width}" height="{_HEIGHT}" fill="white"/>\n{body}\n</svg>\n'
    )


class _Panel:
    def __init__(self, report: Report, kind: str, highest: float) -> None:
        self._report = report
        self._kind = kind
        self._highest = highest
        self._parts: list[str] = []

    def text(self) -> str:
        self._axes()
        for number, column in enumerate(self._report.columns):
            self._column(number, column)
        return "\n".join(self._parts)

    def _axes(self) -> None:
        self._label(_WIDTH / 2, 20, self._report.title(self._kind), "middle")
        for tenth in range(0, 11, 2):
            x = self._x(tenth / 10)
            self._line((x, self._y(0)), (x, _TOP), "#dddddd")
            self._label(x, _HEIGHT - _BOTTOM + 18, f"{10 * tenth} %", "middle")
        for fifth in range(6):
            rate = self._highest * fifth / 5
            y = self._y(rate)
            self._line((self._x(0), y), (self._x(1), y), "#dddddd")
            self._label(_LEFT - 6, y + 4, f"{rate:.0f}", "end")
        self._label(_WIDTH / 2, _HEIGHT - 10, "experts in slots", "middle")
        self._label(8, _TOP - 8, "tokens/s", "start")

    def _column(self, number: int, column: str) -> None:
        colour = _COLOURS[number % len(_COLOURS)]
        at = self._report.columns.index(column)
        points = [
            (self._x(ratio), self._y(measured.rate), measured.spread)
            for ratio in self._report.ratios
            if (measured := self._report.row(self._kind, ratio)[at]) is not None
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in points)
        self._parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
        for x, y, spread in points:
            half = spread / self._highest * (_HEIGHT - _TOP - _BOTTOM)
            self._line((x, y - half), (x, y + half), colour)
        y = _TOP + 12 + 16 * number
        self._line((_LEFT + 10, y - 4), (_LEFT + 34, y - 4), colour, 2)
        self._label(_LEFT + 40, y, column, "start")

    def _x(self, ratio: float) -> float:
        return _LEFT + ratio * (_WIDTH - _LEFT - _RIGHT)

    def _y(self, rate: float) -> float:
        return _HEIGHT - _BOTTOM - rate / self._highest * (_HEIGHT - _TOP - _BOTTOM)

    def _line(
        self, start: tuple[float, float], end: tuple[float, float], colour: str, width: int = 1
    ) -> None:
        self._parts.append(
            f'<line x1="{start[0]:.1f}" y1="{start[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}" '
            f'stroke="{colour}" stroke-width="{width}"/>'
        )

    def _label(self, x: float, y: float, text: str, anchor: str) -> None:
        self._parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
        )
