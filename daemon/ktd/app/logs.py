"""The daemon's log: structlog to standard error, as JSON or for people, and never in the way.

Whoever reads standard error may stop reading. The event loop must not wait for it, because then
the engine's output would not be read either; so lines go through a bounded queue to a thread, and
what does not fit is counted and said.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import sys
import threading
from collections.abc import Iterator, MutableMapping
from typing import Any, TextIO

import structlog

_QUEUE_LINES = 20_000
_FLUSH_SECONDS = 1.0
_SHOWN_CHARACTERS = 400


class LineWriter:
    """Writes lines to ``stream`` from a thread of its own; its methods never block."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lines: queue.Queue[str | None] = queue.Queue(_QUEUE_LINES)
        self._dropped = 0
        self._thread = threading.Thread(target=self._write_all, name="log", daemon=True)
        self._thread.start()

    def msg(self, message: str) -> None:
        """Queues one line, or counts it as dropped."""
        try:
            self._lines.put_nowait(message)
        except queue.Full:
            self._dropped += 1

    log = debug = info = warn = warning = error = critical = exception = fatal = failure = msg

    def close(self) -> None:
        """Writes what is queued, for at most a second."""
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(None)
            self._thread.join(_FLUSH_SECONDS)

    def _write_all(self) -> None:
        while (line := self._lines.get()) is not None:
            dropped, self._dropped = self._dropped, 0
            if dropped:
                line = f"({dropped} log lines were dropped: nobody read them in time)\n{line}"
            try:
                self._stream.write(line + "\n")
                if self._lines.empty():
                    self._stream.flush()
            except (OSError, ValueError):
                # The reader has gone for good; the daemon serves on without a log.
                return


class _ToStructlog(logging.Handler):
    """Libraries that use :mod:`logging` end up in the same log."""

    def emit(self, record: logging.LogRecord) -> None:
        """Passes one record on."""
        try:
            message = record.getMessage()
        except (TypeError, ValueError):
            message = str(record.msg)
        structlog.get_logger(record.name).log(
            record.levelno, message, logger=record.name, exc_info=record.exc_info
        )


@contextlib.contextmanager
def logging_to(
    stream: TextIO, *, style: str, level: str
) -> Iterator[structlog.typing.FilteringBoundLogger]:
    """Configures structlog and :mod:`logging` for this process, and flushes at the end.

    Args:
        stream: Where lines go.
        style: ``"json"`` or ``"console"``.
        level: Least level: ``"debug"``, ``"info"``, ``"warning"`` or ``"error"``.
    """
    number = logging.getLevelNamesMapping()[level.upper()]
    writer = LineWriter(stream)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *_rendering(style, colours=stream.isatty()),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=lambda *_args: writer,
        cache_logger_on_first_use=False,
    )
    handler = _ToStructlog()
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(max(number, logging.WARNING))
    try:
        yield structlog.get_logger("ktd")
    finally:
        root.removeHandler(handler)
        root.setLevel(before)
        writer.close()
        structlog.reset_defaults()


def _rendering(style: str, *, colours: bool) -> list[Any]:
    if style == "json":
        return [
            structlog.processors.dict_tracebacks,
            structlog.processors.JSONRenderer(),
        ]
    return [_engine_lines, structlog.dev.ConsoleRenderer(colors=colours, pad_event_to=0)]


def _engine_lines(
    _logger: Any, _name: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """For people a line of the engine is the line, not a field, and not a page of arguments."""
    if event.get("event") == "engine" and "line" in event:
        line = event.pop("line")
        cut = f"{line[:_SHOWN_CHARACTERS]} …" if len(line) > _SHOWN_CHARACTERS else line
        event["event"] = f"| {cut}"
        event.pop("engine_id", None)
    return event


def to_standard_error(style: str, level: str) -> Any:
    """:func:`logging_to` for ``sys.stderr``."""
    return logging_to(sys.stderr, style=style, level=level)
