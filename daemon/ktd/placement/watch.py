"""A value that others can watch."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

T = TypeVar("T")


class Watched(Generic[T]):
    """The latest value; a watcher that is slow misses values between, never the last one."""

    def __init__(self, value: T) -> None:
        self._value = value
        self._changed = asyncio.Event()

    @property
    def value(self) -> T:
        """The current value."""
        return self._value

    def set(self, value: T) -> None:
        """Replaces the value and wakes every watcher."""
        self._value = value
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def watch(self) -> AsyncIterator[T]:
        """The current value at once, then the latest one after each change; never ends."""
        while True:
            changed = self._changed
            yield self._value
            await changed.wait()
