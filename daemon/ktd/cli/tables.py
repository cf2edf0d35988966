"""Aligned tables and aligned "name  value" lines."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from ktd.cli.terminal import Terminal

_ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


def display_width(text: str) -> int:
    """Columns that ``text`` takes, without its colours."""
    plain = _ESCAPE.sub("", text)
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in plain)


def table(
    terminal: Terminal, header: Sequence[str], rows: Sequence[Sequence[str]], align: str
) -> None:
    """Writes ``rows`` under ``header``.

    Args:
        terminal: Where to.
        header: One title per column.
        rows: Cells, possibly coloured.
        align: One letter per column, ``l`` or ``r``.
    """
    widths = [
        max(display_width(row[column]) for row in (header, *rows)) for column in range(len(header))
    ]
    terminal.line(terminal.styled(_row(header, widths, align), "dim"))
    for row in rows:
        terminal.line(_row(row, widths, align))


def facts(terminal: Terminal, pairs: Sequence[tuple[str, str]]) -> None:
    """Writes aligned ``name  value`` lines, leaving out empty values."""
    shown = [(name, value) for name, value in pairs if value]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        terminal.line(f"{terminal.styled(name.ljust(width), 'dim')}  {value}")


def _row(cells: Sequence[str], widths: Sequence[int], align: str) -> str:
    parts = []
    for cell, width, side in zip(cells, widths, align, strict=True):
        padding = " " * (width - display_width(cell))
        parts.append(padding + cell if side == "r" else cell + padding)
    return "  ".join(parts).rstrip()
