"""The engine host's state, set by its main thread and watched through the control service."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

from ktd.internal.v1 import control_pb2 as pb


class HostStateCell:
    """One value, set from any thread; watchers on the owning event loop see every last value."""

    def __init__(self, loop: asyncio.AbstractEventLoop, initial: pb.HostState) -> None:
        self._loop = loop
        self._value = initial
        self._changed = asyncio.Event()
        self._lock = threading.Lock()

    def set(self, phase: pb.HostState.Phase.ValueType, message: str, **facts: object) -> None:
        """Publishes a new phase; facts that were set before stay. Callable from any thread."""
        value = pb.HostState()
        with self._lock:
            value.CopyFrom(self._value)
            value.phase, value.message = phase, message
            for name, fact in facts.items():
                setattr(value, name, fact)
            self._value = value
        self._loop.call_soon_threadsafe(self._wake)

    async def watch(self) -> AsyncIterator[pb.HostState]:
        """The current value at once, then each change (a slow watcher skips values)."""
        seen: pb.HostState | None = None
        while True:
            changed = self._changed
            if self._value is not seen:
                seen = self._value
                yield seen
            else:
                await changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
