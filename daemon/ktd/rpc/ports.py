"""What the RPC services need from the rest of the daemon."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from ktd.engine.status import EngineStatus


class EngineControl(Protocol):
    """The supervised engine; ``ktd.engine.supervisor`` satisfies it."""

    def status(self) -> EngineStatus:
        """The current status; never waits for the engine."""
        ...

    def watch(self) -> AsyncIterator[EngineStatus]:
        """The current status at once, then each change; ends when the daemon shuts down."""
        ...

    async def start(self) -> EngineStatus:
        """Starts a stopped or failed engine and returns at once.

        Raises:
            EngineNotStopped: it is running.
        """
        ...

    async def stop(self, drain: float | None) -> EngineStatus:
        """Drains requests for up to ``drain`` seconds (None: the configured time), then stops."""
        ...

    async def restart(self, drain: float | None) -> EngineStatus:
        """Stops, then starts with the last committed placement."""
        ...
