"""Changes of the engine that go on when their caller hangs up."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from ktd.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from ktd.engine.status import EngineStatus


class Outliving:
    """Owns the tasks of such changes: half a stop is no state."""

    def __init__(self) -> None:
        self._changes: set[asyncio.Task[EngineStatus]] = set()

    async def wait(self, change: Coroutine[Any, Any, EngineStatus]) -> EngineStatus:
        """Carries ``change`` out, whether or not the caller stays to see its end."""
        task = asyncio.create_task(change)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        return await asyncio.shield(task)


def drain_of(seconds: float | None) -> float | None:
    """A request's drain time, checked.

    Raises:
        InvalidArgument: it is negative.
    """
    # Written so that NaN is refused too.
    if seconds is not None and not seconds >= 0:
        raise InvalidArgument(f"drain_timeout_seconds is {seconds:g}, but must be 0 or more.")
    return seconds
