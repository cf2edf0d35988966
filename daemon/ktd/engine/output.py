"""What an engine prints: relayed line by line, and its last lines kept for the failure sentence."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from typing import Protocol

KEPT_LINES = 50
_CHUNK = 1 << 16
_MAX_LINE = 1 << 16
_LINE_END = re.compile(rb"\r\n|\n|\r")
_ERROR = re.compile(r"\b\w*(?:Error|Exception)\b\s*[:(]|\berror:|\bfatal\b", re.IGNORECASE)


class ByteReader(Protocol):
    """The reading end of the engine's output; :class:`asyncio.StreamReader` is one."""

    async def read(self, n: int = -1) -> bytes:
        """At most ``n`` bytes as soon as there are any; empty at the end."""
        ...


class EngineOutput:
    """Reads the engine's output as fast as it comes, so that its pipe never fills.

    ``emit`` is called for each line and must not block.
    """

    def __init__(self, emit: Callable[[str], None]) -> None:
        self._emit = emit
        self._last: deque[str] = deque(maxlen=KEPT_LINES)
        self.lines = 0

    async def relay(self, reader: ByteReader) -> None:
        """Relays until the last writer has closed its end."""
        rest = b""
        while data := await reader.read(_CHUNK):
            *lines, rest = _LINE_END.split(rest + data)
            for line in lines:
                self._line(line)
            if len(rest) > _MAX_LINE:
                self._line(rest)
                rest = b""
        self._line(rest)

    @property
    def tail(self) -> tuple[str, ...]:
        """The last lines, oldest first."""
        return tuple(self._last)

    def cause(self) -> str:
        """The last line that looks like an error, or an empty string."""
        return next((line.strip() for line in reversed(self._last) if _ERROR.search(line)), "")

    def _line(self, raw: bytes) -> None:
        line = raw.decode(errors="replace").rstrip()
        if not line:
            return
        self.lines += 1
        self._last.append(line)
        self._emit(line)
