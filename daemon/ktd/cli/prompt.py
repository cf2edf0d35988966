"""Lines from a person at a terminal (with editing and a history) or from a pipe."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

_HISTORY_LINES = 1000


@dataclass(frozen=True, slots=True)
class Prompt:
    """Where questions come from."""

    stream: TextIO
    interactive: bool

    @classmethod
    def of(cls, stdin: TextIO, stdout: TextIO) -> Prompt:
        """A prompt at the terminal if both streams are one, else the lines of ``stdin``."""
        return cls(stdin, interactive=stdin.isatty() and stdout.isatty())

    def lines(self) -> Iterator[str]:
        """Each line without its end; ends at the end of the input.

        Raises:
            KeyboardInterrupt: Ctrl-C while waiting for a line.
        """
        if not self.interactive:
            for line in self.stream:
                yield line.rstrip("\n")
            return
        with _line_editing():
            while True:
                try:
                    yield input("> ")
                except EOFError:
                    return


@contextlib.contextmanager
def _line_editing() -> Iterator[None]:
    """Gives ``input()`` editing and a history that is kept, as far as Python has readline."""
    try:
        readline: Any = importlib.import_module("readline")
    except ImportError:
        yield
        return
    path = _history_path()
    # A missing or unwritable history is no reason not to talk.
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(_HISTORY_LINES)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            readline.write_history_file(path)
            path.chmod(0o600)


def _history_path() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "ktd" / "chat_history"
