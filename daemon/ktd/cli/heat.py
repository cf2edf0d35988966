"""The layer × expert heat map in a terminal: colour is heat, a dot is a GPU slot.

Heat is relative to the row's hottest cell, because layers are compared by shape, not by size.
The palette is a run through the 256-colour cube that grows steadily in lightness, so it reads the
same to colour-blind eyes and in grey; without colours, shades of block characters stand in.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ktd.cli.terminal import Terminal

PALETTE = (234, 17, 18, 19, 55, 91, 127, 163, 203, 209, 215, 221, 229)
_LIGHT = 9  # From this palette entry on, a dot must be dark to be seen.
_SHADES = " ░▒▓█"
_ASCII_SHADES = " .:*#"


@dataclass(frozen=True, slots=True)
class HeatRow:
    """One layer: its index, a count per expert, and which experts are in GPU slots."""

    layer: int
    counts: Sequence[float]
    gpu_experts: Collection[int] = ()


def cell_width(terminal: Terminal, experts: int, maps: int = 1) -> int:
    """2 where ``maps`` maps of ``experts`` columns fit side by side, else 1."""
    return 2 if maps * (2 * experts + 6) <= terminal.width else 1


def heat_strip(terminal: Terminal, row: HeatRow, *, room: int) -> str:
    """One row of the map in at most ``room`` columns; neighbours share a cell where it must be."""
    experts = max(1, len(row.counts))
    width = 2 if 2 * experts <= room else 1
    group = -(-experts * width // room)
    sums = [sum(row.counts[i : i + group]) for i in range(0, len(row.counts), group)]
    on_gpu = {expert // group for expert in row.gpu_experts}
    top = max(sums, default=0)
    return "".join(
        _cell(terminal, total / top if top else 0.0, marked=i in on_gpu, width=width)
        for i, total in enumerate(sums)
    )


def legend(terminal: Terminal) -> str:
    """What the cells mean."""
    steps = "".join(
        _cell(terminal, i / (len(PALETTE) - 1), marked=False, width=1) for i in range(len(PALETTE))
    )
    mark = "•" if terminal.unicode else "o"
    return f"cold {steps} hot   {mark} in a GPU slot"


def _cell(terminal: Terminal, share: float, *, marked: bool, width: int) -> str:
    mark = ("•" if terminal.unicode else "o") if marked else " "
    if terminal.colour:
        index = min(len(PALETTE) - 1, round(share * (len(PALETTE) - 1)))
        text = "30" if index >= _LIGHT else "97"
        return f"\x1b[{text};48;5;{PALETTE[index]}m{mark}{' ' * (width - 1)}\x1b[0m"
    shades = _SHADES if terminal.unicode else _ASCII_SHADES
    shade = shades[min(len(shades) - 1, -(-int(share * 1000) * (len(shades) - 1) // 1000))]
    if width == 1:
        return mark if marked else shade
    return shade + mark
