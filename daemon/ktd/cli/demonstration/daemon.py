"""A daemon of the demo's own: started as a user would, in folders that go away with it."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ktd.cli.message_json import enum_name
from ktd.client import DaemonUnreachable, KtdClient
from ktd.errors import EngineFailed

if TYPE_CHECKING:
    from ktd.client import EngineStatus

_PR_SET_PDEATHSIG = 1  # prctl(2)
_POLL = 0.1
_STOP_SECONDS = 30.0
_LOG_LINES = 15
_LONGEST_FOLDER = 48  # leaves room in the 107 bytes of a Unix socket's path


@dataclass(frozen=True, slots=True)
class DemoDaemon:
    """A running daemon: its process, socket and log."""

    process: subprocess.Popen[bytes]
    socket: Path
    log: Path

    async def ready(self, tell: Callable[[EngineStatus], None]) -> EngineStatus:
        """Waits until requests are served, telling every status on the way.

        Raises:
            EngineFailed: the engine or the daemon could not start; the message says why.
        """
        while True:
            self._check_alive()
            try:
                async with KtdClient(self.socket) as client:
                    async for status in client.watch_status():
                        tell(status)
                        phase = enum_name(status, "phase")
                        if phase == "READY":
                            return status
                        if phase in ("FAILED", "BACKOFF"):
                            raise EngineFailed(f"the engine did not start: {status.message}")
            except DaemonUnreachable:
                await asyncio.sleep(_POLL)

    def last_lines(self) -> list[str]:
        """The end of the log."""
        with contextlib.suppress(OSError):
            return self.log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
        return []

    def _check_alive(self) -> None:
        code = self.process.poll()
        if code is not None:
            said = next((line for line in reversed(self.last_lines()) if line.strip()), "")
            raise EngineFailed(f"'ktd serve' ended with code {code}: {said.strip() or 'silently'}")


@asynccontextmanager
async def demo_daemon(model: Path, *, ratio: float) -> AsyncIterator[DemoDaemon]:
    """Serves ``model`` on a free port; stops the daemon and removes its folders at the end.

    Args:
        model: The model's folder.
        ratio: Share of experts in GPU slots.
    """
    folder = Path(tempfile.mkdtemp(prefix="ktd-demo-", dir=_short_folder()))
    try:
        daemon = _start(model, ratio, folder)
        try:
            yield daemon
        finally:
            await _stop(daemon.process)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _short_folder() -> str:
    """The folder for temporary files, or /tmp where sockets in that one would have long names."""
    folder = tempfile.gettempdir()
    return folder if len(os.fsencode(folder)) <= _LONGEST_FOLDER else "/tmp"  # noqa: S108 - mkdtemp


def _start(model: Path, ratio: float, folder: Path) -> DemoDaemon:
    log, config, socket = folder / "daemon.log", folder / "ktd.toml", folder / "ktd.sock"
    config.touch()  # The operator's own configuration is not the demo's.
    command = [
        *(sys.executable, "-m", "ktd", "serve", str(model)),
        *("--config", str(config)),
        *("--socket", str(socket)),
        *("--runtime-dir", str(folder / "run")),
        *("--state-dir", str(folder / "state")),
        *("--port", "0"),
        *("--kt-gpu-experts-ratio", str(ratio)),
        *("--kt-expert-placement-strategy", "uniform"),
        *("--log-format", "console"),
        # The second pass must compute what the first one did, not find it in a cache.
        "--disable-radix-cache",
    ]
    kept = ("KTD_ISA", "KTD_CPU_THREADS")
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("KTD_") or name in kept
    }
    # SGLang leaves empty files and sockets among the temporary ones: they go with the folder.
    (folder / "tmp").mkdir()
    environment["TMPDIR"] = str(folder / "tmp")
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            # Ctrl-C is for the demo, which then stops the daemon as it should be stopped.
            start_new_session=True,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - no thread runs yet, and one call follows
        )
    return DemoDaemon(process, socket, log)


async def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends the daemon, which drains and ends the engine; kills only what does not listen."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            await asyncio.to_thread(process.wait, _STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            await asyncio.to_thread(process.wait)


_LIBC = ctypes.CDLL(None)  # Before the fork: nothing may be loaded between fork and exec.


def _die_with_parent() -> None:
    """If the demo is killed, the daemon is told to stop."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
