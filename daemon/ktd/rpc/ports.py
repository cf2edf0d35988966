"""What the RPC services need from the rest of the daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ktd.engine.status import EngineStatus
    from ktd.stats.model import Snapshot
    from ktd.stats.rates import Rates


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


class StatsSource(Protocol):
    """Where statistics come from; ``ktd.stats.hub.StatsHub`` satisfies it."""

    def snapshot(self, window: float | None = None) -> Snapshot:
        """One full snapshot of now; its window is the last ``window`` seconds, or all the time.

        Raises:
            EngineNotReady: no engine has counted anything yet.
            InvalidArgument: the window is too long, or not above 0.
        """
        ...

    def rates(self) -> Rates | None:
        """Exponentially decayed rates as of now."""
        ...

    def watch(self, min_interval: float) -> AsyncIterator[Snapshot]:
        """A full snapshot as soon as there is one, then deltas, ``min_interval`` seconds apart."""
        ...
