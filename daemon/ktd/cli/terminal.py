"""What a command prints to: plain text into a pipe, colours on a terminal that wants them."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TextIO

_CODES = {
    "bold": "1",
    "dim": "2",
    "green": "32",
    "yellow": "33",
    "red": "31",
    "cyan": "36",
    "blue": "34",
}
_DEFAULT_WIDTH = 80


@dataclass(frozen=True, slots=True)
class Terminal:
    """One output stream and what it can show.

    Attributes:
        stream: Where text goes.
        interactive: A person is looking: lines may be rewritten, questions asked.
        colour: Escape sequences are welcome (see https://no-color.org).
        unicode: The stream's encoding can carry block characters and marks.
    """

    stream: TextIO
    interactive: bool
    colour: bool
    unicode: bool

    @classmethod
    def of(cls, stream: TextIO, environ: Mapping[str, str] = os.environ) -> Terminal:
        """Finds out what ``stream`` can show."""
        interactive = stream.isatty() and environ.get("TERM") != "dumb"
        try:
            "█▁•✓".encode(stream.encoding or "ascii")
        except (UnicodeEncodeError, LookupError):
            unicode = False
        else:
            unicode = True
        return cls(
            stream,
            interactive=interactive,
            colour=interactive and not environ.get("NO_COLOR"),
            unicode=unicode,
        )

    @property
    def width(self) -> int:
        """Columns, 80 for a pipe."""
        if not self.interactive:
            return _DEFAULT_WIDTH
        return shutil.get_terminal_size((_DEFAULT_WIDTH, 24)).columns

    def styled(self, text: str, *styles: str) -> str:
        """``text`` in the named styles, or as it is where there are no colours."""
        if not self.colour or not text or not styles:
            return text
        return f"\x1b[{';'.join(_CODES[style] for style in styles)}m{text}\x1b[0m"

    def line(self, text: str = "") -> None:
        """Writes one line."""
        self.stream.write(self._encodable(text) + "\n")

    def write(self, text: str) -> None:
        """Writes text as it is and shows it at once."""
        self.stream.write(self._encodable(text))
        self.stream.flush()

    def progress(self, text: str) -> None:
        """Rewrites the current line; nothing where nobody looks."""
        if self.interactive:
            self.write(f"\r\x1b[2K{text[: self.width - 1]}")

    def progress_done(self) -> None:
        """Clears the line that :meth:`progress` wrote."""
        if self.interactive:
            self.write("\r\x1b[2K")

    def _encodable(self, text: str) -> str:
        if self.unicode:
            return text
        encoding = self.stream.encoding or "ascii"
        return text.encode(encoding, errors="replace").decode(encoding)


def out() -> Terminal:
    """Standard output as it is now."""
    return Terminal.of(sys.stdout)


def err() -> Terminal:
    """Standard error as it is now."""
    return Terminal.of(sys.stderr)
