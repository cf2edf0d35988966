"""Draws a roofline as SVG, which needs no library."""

from __future__ import annotations

import math
from xml.sax.saxutils import escape

from ktd.bench.kernels.roofline import Roofline

_WIDTH, _HEIGHT = 900, 560
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 250, 40, 60
_COLOURS = ("#0b6e99", "#c4541a", "#3f7d20", "#7b3fa0", "#b8860b", "#a31621", "#4a5568", "#008b8b")


class RooflineSvg:
    """One drawing."""

    def __init__(self, roofline: Roofline) -> None:
        self._roofline = roofline
        self._x_range, self._y_range = roofline.x_range, roofline.y_range
        self._parts: list[str] = []

    def text(self) -> str:
        """The whole file."""
        self._axes()
        for roof in self._roofline.roofs:
            self._roof(roof.bandwidth, roof.peak, roof.ridge, roof.name)
        self._points()
        body = "\n".join(self._parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
            f'font-family="sans-serif" font-size="12">\n'
            f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>\n{body}\n</svg>\n'
        )

    def _x(self, value: float) -> float:
        return _LEFT + _share(value, self._x_range) * (_WIDTH - _LEFT - _RIGHT)

    def _y(self, value: float) -> float:
        return _HEIGHT - _BOTTOM - _share(value, self._y_range) * (_HEIGHT - _TOP - _BOTTOM)

    def _axes(self) -> None:
        (x0, x1), (y0, y1) = self._x_range, self._y_range
        for x in _ticks(x0, x1):
            self._line((x, y0), (x, y1), "#e2e2e2")
            self._label(self._x(x), _HEIGHT - _BOTTOM + 18, f"{x:g}", "middle")
        for y in _ticks(y0, y1):
            self._line((x0, y), (x1, y), "#e2e2e2")
            self._label(_LEFT - 8, self._y(y) + 4, f"{y / 1e12:g}", "end")
        self._label(_LEFT, 24, self._roofline.title, "start")
        self._label((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 16, "operations a byte", "middle")
        self._label(16, _TOP - 8, "TFLOP/s", "start")

    def _roof(self, bandwidth: float, peak: float, ridge: float, name: str) -> None:
        (x0, x1), (y0, _) = self._x_range, self._y_range
        start = max(x0, y0 / bandwidth)
        self._line((start, start * bandwidth), (ridge, peak), "black", 1.5)
        self._line((ridge, peak), (x1, peak), "black", 1.5)
        self._label(self._x(x1) + 6, self._y(peak) + 4, name, "start")

    def _points(self) -> None:
        series = list(dict.fromkeys(point.series for point in self._roofline.points))
        for point in self._roofline.points:
            colour = _COLOURS[series.index(point.series) % len(_COLOURS)]
            self._parts.append(
                f'<circle cx="{self._x(point.x):.1f}" cy="{self._y(point.y):.1f}" r="4" '
                f'fill="{colour}"><title>{escape(point.label)}</title></circle>'
            )
        for row, name in enumerate(series):
            y = _HEIGHT - _BOTTOM - 16 * (len(series) - row)
            colour = _COLOURS[row % len(_COLOURS)]
            x = _WIDTH - _RIGHT + 12
            self._parts.append(f'<circle cx="{x}" cy="{y - 4}" r="4" fill="{colour}"/>')
            self._label(x + 10, y, name, "start")

    def _line(
        self, start: tuple[float, float], end: tuple[float, float], colour: str, width: float = 1
    ) -> None:
        self._parts.append(
            f'<line x1="{self._x(start[0]):.1f}" y1="{self._y(start[1]):.1f}" '
            f'x2="{self._x(end[0]):.1f}" y2="{self._y(end[1]):.1f}" '
            f'stroke="{colour}" stroke-width="{width}"/>'
        )

    def _label(self, x: float, y: float, text: str, anchor: str) -> None:
        self._parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
        )


def _share(value: float, span: tuple[float, float]) -> float:
    low, high = (math.log10(end) for end in span)
    return (math.log10(value) - low) / (high - low)


def _ticks(low: float, high: float) -> list[float]:
    return [10.0**power for power in range(round(math.log10(low)), round(math.log10(high)) + 1)]
