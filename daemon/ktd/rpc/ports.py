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


class FittingBudget(Protocol):
    """How many experts fit; ``ktd.model.fit.Fit`` satisfies it, see there."""

    @property
    def slots(self) -> int:
        """What `auto` takes, over all layers."""
        ...

    @property
    def ratio(self) -> float:
        """The same as a share of all experts."""
        ...

    @property
    def largest(self) -> int:
        """The most that fit."""
        ...

    @property
    def total_experts(self) -> int:
        """Over all layers."""
        ...

    @property
    def num_layers(self) -> int:
        """MoE layers."""
        ...

    @property
    def expert_bytes(self) -> int:
        """Of one expert, over all ranks."""
        ...

    @property
    def slot_bytes(self) -> int:
        """What the slots take."""
        ...

    @property
    def free_bytes(self) -> int:
        """Memory that the sum begins with."""
        ...

    @property
    def room_bytes(self) -> int:
        """What of it is left for slots."""
        ...

    @property
    def assumptions(self) -> tuple[str, ...]:
        """Sentences about the sum."""
        ...


class FitSource(Protocol):
    """Looks at the memory; ``ktd.app.fitting.RunningFit`` satisfies it."""

    def fit(self) -> FittingBudget:
        """The budget as of now; may ask a process.

        Raises:
            EngineNotReady: nobody has looked at the model yet.
        """
        ...
