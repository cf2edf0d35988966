"""systemd's notification protocol (sd_notify(3)): ready, status text, more time, still alive."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Mapping

from ktd.engine.status import EnginePhase, EngineStatus

# While loading: said every few seconds, so that a start that stands still is ended in the end.
_EXTENSION_SECONDS = 90
_BEAT_SECONDS = 5.0
_SEND_SECONDS = 0.5
_MICRO = 1_000_000


class Notifier:
    """Sends to ``NOTIFY_SOCKET``; does nothing outside systemd."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):
            self._address = "\0" + self._address[1:]
        watchdog = environment.get("WATCHDOG_USEC", "")
        self._watchdog = int(watchdog) / _MICRO if watchdog.isdigit() else None

    @classmethod
    def from_environment(cls) -> Notifier:
        """For this process."""
        return cls(os.environ)

    def send(self, **fields: object) -> None:
        """One message, ``READY="1", STATUS="…"``; a manager that does not listen is no error."""
        if not self._address:
            return
        message = "\n".join(f"{name}={_one_line(value)}" for name, value in fields.items())
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock,
        ):
            # Datagrams queue up to ten deep; READY must not be the eleventh.
            sock.settimeout(_SEND_SECONDS)
            sock.sendto(message.encode(), self._address)

    async def follow(self, statuses: AsyncIterator[EngineStatus]) -> None:
        """Reports each status; READY once, when requests are served for the first time."""
        if not self._address:
            return
        ready = False
        async for status in statuses:
            fields: dict[str, object] = {"STATUS": f"{status.phase.name}: {status.message}"}
            if status.phase is EnginePhase.READY and not ready:
                ready = True
                fields["READY"] = 1
            elif not ready:
                fields["EXTEND_TIMEOUT_USEC"] = _EXTENSION_SECONDS * _MICRO
            self.send(**fields)

    async def beat(self) -> None:
        """Feeds the watchdog for as long as the event loop turns; a hanging engine has its own."""
        if not self._address or self._watchdog is None:
            return
        while True:
            self.send(WATCHDOG=1)
            await asyncio.sleep(min(_BEAT_SECONDS, self._watchdog / 3))


def _one_line(value: object) -> str:
    return " ".join(str(value).split())
