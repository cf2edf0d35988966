"""Which requests may go to the engine: the one owner of "open", "closed" and "in flight"."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path


class Gate:
    """Open while the engine serves; counts what passes, and can wait until all has left.

    Attributes:
        upstream: The engine's Unix socket while open, else None.
        closed_reason: Why it is closed, for the 503.
    """

    def __init__(self) -> None:
        self.upstream: Path | None = None
        self.closed_reason = "The engine is starting."
        self._tasks: set[asyncio.Task[object]] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def in_flight(self) -> int:
        """Requests that have passed and not been answered completely."""
        return len(self._tasks)

    def open(self, upstream: Path) -> None:
        """Lets requests through to this socket."""
        self.upstream = upstream

    def close(self, reason: str) -> None:
        """Lets no new request through; those inside go on."""
        self.upstream = None
        self.closed_reason = reason

    @contextlib.contextmanager
    def passing(self) -> Iterator[None]:
        """The current task's request is inside."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a request is handled in a task")
        self._tasks.add(task)
        self._idle.clear()
        try:
            yield
        finally:
            self._tasks.discard(task)
            if not self._tasks:
                self._idle.set()

    async def drained(self, seconds: float) -> bool:
        """Waits until nothing is inside, at most ``seconds``; whether it is so."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), seconds)
        return not self._tasks
