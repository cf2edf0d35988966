"""What the supervisor needs from the rest of the daemon."""

from __future__ import annotations

from typing import Any, Protocol

from ktd.engine.bridge import EngineBridge
from ktd.enginespec import EngineSpec


class Engines(Protocol):
    """What the supervisor needs from the rest of the daemon."""

    async def next_spec(self) -> EngineSpec:
        """What to start now, with an id of its own and the last committed placement.

        The first call may take long (a download); it is cancelled when a stop is asked for.
        """
        ...

    async def attach(self, bridge: EngineBridge, spec: EngineSpec) -> None:
        """The engine is ready: requests and swaps may go to it."""
        ...

    async def detach(self, reason: str) -> None:
        """The engine is gone or about to be stopped, and why: no more requests and swaps."""
        ...

    async def drain(self, seconds: float) -> None:
        """Takes no new requests and returns when none is in flight, or after ``seconds``."""
        ...

    def advice(self) -> str:
        """What an operator can do about too little memory, with values, as a sentence."""
        ...


class Log(Protocol):
    """The log; a structlog logger satisfies it."""

    def info(self, event: str, **fields: Any) -> Any:
        """Logs something that is as it should be."""
        ...

    def warning(self, event: str, **fields: Any) -> Any:
        """Logs something that an operator may want to know."""
        ...

    def error(self, event: str, **fields: Any) -> Any:
        """Logs something that is wrong."""
        ...
