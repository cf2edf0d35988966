"""Starts the engine host as a child process and ends it with everything it started."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ktd.engine.leftovers import end_processes
from ktd.engine.output import EngineOutput
from ktd.engine.pidfd import process_ended
from ktd.enginespec import ID_VARIABLE, SPEC_VARIABLE, EngineSpec
from ktd.errors import DoesNotFit

LIFELINE_VARIABLE = "KTD_LIFELINE_FD"
HOST_COMMAND = (sys.executable, "-m", "ktd.sgl.host")
_MAX_SOCKET_PATH = 107
# Room for the names that SGLang gives its sockets.
_SOCKET_NAME = 32


@dataclass(frozen=True, slots=True)
class EngineProcess:
    """A running engine host.

    Attributes:
        spec: What it was started with.
        process: The child; its pid is also its process group's and session's.
        output: What it printed.
    """

    spec: EngineSpec
    process: subprocess.Popen[bytes]
    output: EngineOutput

    @property
    def pid(self) -> int:
        """Pid of the host."""
        return self.process.pid

    async def ended(self) -> str:
        """Waits for the host to end and says how: ``"exit status 1"``, ``"SIGKILL"``."""
        # Not asyncio's own wait: that returns when the last holder of the output pipe has ended.
        await process_ended(self.pid)
        code = self.process.wait()
        if code >= 0:
            return f"exit status {code}"
        try:
            return signal.Signals(-code).name
        except ValueError:
            return f"signal {-code}"

    def signal(self, number: signal.Signals) -> None:
        """Signals the host alone; it may be gone already."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    async def end_tree(self) -> None:
        """Kills the host, its process group and whatever else carries its engine id."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        await end_processes(self.spec.engine_id)
        await self.ended()


def child_environment(
    spec: EngineSpec, inherited: Mapping[str, str], lifeline: int
) -> dict[str, str]:
    """The environment of the engine host."""
    # Notifications to systemd are the daemon's; configuration of ktd is in the spec.
    env = {
        name: value
        for name, value in inherited.items()
        if name not in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "KTD_API_KEY")
    }
    env |= {
        SPEC_VARIABLE: str(Path(spec.runtime_dir) / "spec.json"),
        ID_VARIABLE: spec.engine_id,
        LIFELINE_VARIABLE: str(lifeline),
        "SGLANG_PLUGINS": "ktd",
        # Without it setproctitle overwrites the environment in /proc, and with it the engine id.
        "SPT_NOENV": "1",
        "PYTHONUNBUFFERED": "1",
    }
    if spec.device == "cpu":
        env["SGLANG_PLATFORM"] = "ktd"
        # Parts of SGLang ask torch for a GPU before they ask the platform.
        env["CUDA_VISIBLE_DEVICES"] = ""
    # SGLang leaves its sockets behind when it is killed; here they go with the engine's folder.
    # What torch has compiled stays where it was, for the next start.
    temporary = temporary_dir(spec)
    if len(os.fsencode(temporary)) <= _MAX_SOCKET_PATH - _SOCKET_NAME:
        compiled = f"{tempfile.gettempdir()}/torchinductor_{os.getuid()}"
        env.setdefault("TORCHINDUCTOR_CACHE_DIR", compiled)
        env["TMPDIR"] = str(temporary)
    return env


def temporary_dir(spec: EngineSpec) -> Path:
    """Where the engine's processes keep temporary files."""
    return Path(spec.runtime_dir) / "tmp"


@contextlib.asynccontextmanager
async def launched(
    spec: EngineSpec,
    *,
    emit: Callable[[str], None],
    command: Sequence[str] = HOST_COMMAND,
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[EngineProcess]:
    """Runs an engine host; on leaving, every process of it is gone and so is its runtime folder.

    Raises:
        DoesNotFit: the runtime folder cannot be made, or its sockets' paths are too long.
    """
    _make_runtime_dir(spec)
    spec.write()
    read_end, write_end = os.pipe()
    try:
        with open(read_end, "rb") as lifeline:  # noqa: ASYNC230, PTH123 - a pipe, opened already
            process = subprocess.Popen(  # noqa: ASYNC220 - returns when the child was executed
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(lifeline.fileno(),),
                env=child_environment(spec, environment or os.environ, lifeline.fileno()),
            )
        engine = EngineProcess(spec, process, EngineOutput(emit))
        relay = asyncio.create_task(_relay(engine), name="engine output")
        try:
            yield engine
        finally:
            await engine.end_tree()
            # All writers are gone, so this ends at once; what they printed last is in the log.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(relay, 1.0)
    finally:
        os.close(write_end)
        shutil.rmtree(spec.runtime_dir, ignore_errors=True)


async def _relay(engine: EngineProcess) -> None:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), engine.process.stdout
    )
    try:
        await engine.output.relay(reader)
    finally:
        transport.close()


def _make_runtime_dir(spec: EngineSpec) -> None:
    longest = len(os.fsencode(spec.control_socket))
    if longest > _MAX_SOCKET_PATH:
        raise DoesNotFit(
            f"The socket path {spec.control_socket} has {longest} bytes, and Linux allows "
            f"{_MAX_SOCKET_PATH}; give a shorter --runtime-dir."
        )
    try:
        # The sockets in it have no other protection.
        Path(spec.runtime_dir).mkdir(mode=0o700, parents=True)
        temporary_dir(spec).mkdir()
    except OSError as error:
        raise DoesNotFit(
            f"The engine's folder {spec.runtime_dir} cannot be made: {error.strerror}; "
            "give another --runtime-dir."
        ) from error
