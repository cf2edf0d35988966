"""A plot of hit rate against budget, as SVG: a few lines need no library."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_WIDTH, _HEIGHT = 640, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 24, 48
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
_DASHES = ("", "6 3", "2 3", "8 3 2 3", "", "6 3")


def budget_plot(title: str, lines: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """An SVG document.

    Args:
        title: Above the plot.
        lines: Name → points of budget and hit rate, both from 0 to 1.
    """
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
            f'width="{_WIDTH}" height="{_HEIGHT}" font-family="sans-serif" font-size="12">'
        ),
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_WIDTH / 2}" y="16" text-anchor="middle">{escape(title)}</text>',
    ]
    parts += _grid()
    for number, (name, points) in enumerate(lines.items()):
        parts += _line(number, name, points)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _grid() -> list[str]:
    parts = []
    for tenth in range(0, 11, 2):
        share = tenth / 10
        x, y = _x(share), _y(share)
        parts += [
            f'<line x1="{x}" y1="{_y(0)}" x2="{x}" y2="{_y(1)}" stroke="#ddd"/>',
            f'<line x1="{_x(0)}" y1="{y}" x2="{_x(1)}" y2="{y}" stroke="#ddd"/>',
            f'<text x="{x}" y="{_y(0) + 16}" text-anchor="middle">{100 * share:.0f} %</text>',
            f'<text x="{_x(0) - 6}" y="{y + 4}" text-anchor="end">{100 * share:.0f} %</text>',
        ]
    middle = (_x(0) + _x(1)) / 2
    return [
        *parts,
        f'<text x="{middle}" y="{_HEIGHT - 10}" text-anchor="middle">experts in slots</text>',
        (
            f'<text transform="translate(14 {_HEIGHT / 2}) rotate(-90)" text-anchor="middle">'
            "pairs computed in slots</text>"
        ),
    ]


def _line(number: int, name: str, points: Sequence[tuple[float, float]]) -> list[str]:
    colour = _COLOURS[number % len(_COLOURS)]
    dash = _DASHES[number % len(_DASHES)]
    style = f'stroke="{colour}" stroke-width="2" fill="none"'
    style += f' stroke-dasharray="{dash}"' if dash else ""
    path = " ".join(f"{_x(budget):.1f},{_y(rate):.1f}" for budget, rate in points)
    y = _y(0) - 12 - 18 * number
    return [
        f'<polyline points="{path}" {style}/>',
        f'<line x1="{_x(1) - 150}" y1="{y - 4}" x2="{_x(1) - 122}" y2="{y - 4}" {style}/>',
        f'<text x="{_x(1) - 116}" y="{y}">{escape(name)}</text>',
    ]


def _x(share: float) -> float:
    return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT), 1)


def _y(share: float) -> float:
    return round(_HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM), 1)
