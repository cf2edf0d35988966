"""Colours of heat: steady in lightness, so that colour-blind eyes and grey screens read it alike.

The anchors are samples of viridis (Smith and van der Walt, released into the public domain).
"""

from __future__ import annotations

import math

_COLD = "#1b1b22"
_ANCHORS = (
    "#440154",
    "#482878",
    "#3e4989",
    "#31688e",
    "#26828e",
    "#1f9e89",
    "#35b779",
    "#6ece58",
    "#b5de2b",
    "#fde725",
)
HEAT = (_COLD, *_ANCHORS)
# Where a mark on the cell must be dark to be seen.
_LIGHT = 6
SHADES = " ░▒▓█"


def heat_index(share: float) -> int:
    """Index into ``HEAT`` for a share of the hottest cell, 0 to 1; only 0 is cold.

    By the square root: routing is skewed, and the middle is where placements differ.
    """
    if share <= 0:
        return 0
    return min(len(HEAT) - 1, 1 + int(math.sqrt(share) * len(_ANCHORS)))


def mark_colour(index: int) -> str:
    """Colour of a mark on ``HEAT[index]``."""
    return "#000000" if index >= _LIGHT else "#ffffff"


def shade(index: int) -> str:
    """The block character that stands for ``HEAT[index]`` where there are no colours."""
    return SHADES[-(-index * (len(SHADES) - 1) // (len(HEAT) - 1))]
