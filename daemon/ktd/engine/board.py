"""The one owner of the engine's status: who changes it does it here, who watches it sees it all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from ktd.engine.status import Condition, EnginePhase, EngineStatus

_MAX_CONDITIONS = 20


class StatusBoard:
    """Holds the current :class:`EngineStatus` and wakes watchers; latest wins."""

    def __init__(self, initial: EngineStatus) -> None:
        self._status = replace(initial, phase_time=time.time())
        self._changed: asyncio.Future[None] | None = None
        self._closed = False

    @property
    def status(self) -> EngineStatus:
        """The status now."""
        return self._status

    async def watch(self) -> AsyncIterator[EngineStatus]:
        """The status now, then each change; ends after :meth:`close`."""
        shown: EngineStatus | None = None
        while True:
            if self._status != shown:
                shown = self._status
                yield shown
            elif self._closed:
                return
            else:
                if self._changed is None or self._changed.done():
                    self._changed = asyncio.get_running_loop().create_future()
                await asyncio.wait((self._changed,))

    def enter(self, phase: EnginePhase, message: str) -> None:
        """Enters a phase, or says something new about the present one."""
        changes: dict[str, Any] = {"phase": phase, "message": message}
        if phase is not self._status.phase:
            changes["phase_time"] = time.time()
        if phase is not EnginePhase.LOADING:
            changes["progress"] = None
        self.update(**changes)

    def say(self, message: str) -> None:
        """What is being done before an engine runs, for people."""
        if self._status.phase is EnginePhase.STARTING:
            self.enter(EnginePhase.STARTING, message)

    def update(self, **changes: Any) -> None:
        """Replaces fields."""
        status = replace(self._status, **changes)
        if status != self._status:
            self._status = status
            self._wake()

    def report(self, reason: str, message: str | None) -> None:
        """Adds a condition in place of an older one with that reason; None only removes that."""
        kept = tuple(item for item in self._status.conditions if item.reason != reason)
        new = () if message is None else (Condition(reason, message, time.time()),)
        self.update(conditions=(*kept, *new)[-_MAX_CONDITIONS:])

    def close(self) -> None:
        """Nothing changes any more: watchers end."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)
