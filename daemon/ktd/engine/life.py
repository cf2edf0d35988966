"""One life of an engine: from the started host to ready, and from ready to its end.

Nothing here decides what comes next; :mod:`ktd.engine.supervisor` does.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from ktd.engine.bridge import EngineBridge, HostState
from ktd.engine.launcher import EngineProcess
from ktd.engine.ranks import Ranks
from ktd.engine.status import EnginePhase
from ktd.enginespec import PROCESS_ENDED, read_failure
from ktd.errors import KtdError
from ktd.version import __version__

_TICK_SECONDS = 0.25
_CONNECT_SECONDS = 0.1
# The kernel's counter moves and the failure file of a sibling appears within this time.
_SETTLE_SECONDS = 0.3
_VMSTAT = Path("/proc/vmstat")


@dataclass(frozen=True, slots=True)
class Ending:
    """Why an engine ended.

    Attributes:
        kind: As :class:`ktd.enginespec.Failure`, or ``"refused"`` when it was not even started;
            all but ``"internal"`` will fail again.
        message: One sentence, or a few when the engine's own message has them.
        error: What refused it.
    """

    kind: str
    message: str
    error: KtdError | None = None


class EngineEnded(Exception):
    """The engine has ended, or must be ended, without being asked to."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.message)
        self.ending = ending


class EngineLife:
    """Watches one engine through all its channels; made by :func:`alive`.

    Attributes:
        state: What the host said last, or None before it listened.
        ranks: The rank files.
        bridge: The control channel.
        ready_time: ``time.monotonic()`` when it became ready, or None.
    """

    def __init__(
        self, process: EngineProcess, bridge: EngineBridge, on_change: Callable[[], None]
    ) -> None:
        self.process = process
        self.bridge = bridge
        self.state: HostState | None = None
        self.ready_time: float | None = None
        self.ranks = Ranks(Path(process.spec.runtime_dir), self._rank_ended)
        self._on_change = on_change
        self._suspect: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._rank_gone_ns: float = math.inf
        self._kills = _oom_kills()
        self._activity: tuple[object, ...] = ()
        self._active_at = time.monotonic()

    @property
    def phase(self) -> EnginePhase:
        """The phase that this life has reached."""
        if self.ready_time is not None:
            return EnginePhase.READY
        if self.state is None or self.state.phase is EnginePhase.FAILED:
            return EnginePhase.STARTING
        # Ready for SGLang; for ktd only when every rank has said hello.
        return min(self.state.phase, EnginePhase.WARMING)

    async def until_ready(self, *, num_ranks: int, timeout: float) -> None:  # noqa: ASYNC109 - counts from the last progress, so asyncio.timeout does not fit
        """Returns when requests can be served and every rank has said the right hello.

        Raises:
            EngineEnded: it ended, reported a failure, or made no progress for ``timeout`` seconds.
        """
        while True:
            self.ranks.look(num_ranks)
            if self.state is not None and self.state.phase is EnginePhase.READY:
                self._check_versions()
                if len(self.ranks.hellos) == num_ranks:
                    self._check_hellos()
                    self.ready_time = time.monotonic()
                    return
            self._note_progress(timeout)
            await self._tick()

    async def until_ended(self) -> None:
        """Watches a ready engine; never returns.

        Raises:
            EngineEnded: it ended, or a rank hangs or gave up.
        """
        while True:
            if complaint := self.ranks.complaint():
                raise EngineEnded(Ending("internal", f"The engine hangs: {complaint}."))
            await self._tick()

    async def _tick(self) -> None:
        """Waits a moment, or until something ended."""
        done, _ = await asyncio.wait((self._suspect,), timeout=_TICK_SECONDS)
        if done:
            raise EngineEnded(await self._ending(self._suspect.result()))
        # A plugin writes its failure before SGLang winds itself down, which may take long.
        if read_failure(Path(self.process.spec.runtime_dir)) is not None:
            raise EngineEnded(await self._ending("a failure was reported"))
        self._on_change()

    async def _ending(self, event: str) -> Ending:
        await asyncio.sleep(_SETTLE_SECONDS)
        if self._suspect.done():
            event = self._suspect.result()
        failure = read_failure(Path(self.process.spec.runtime_dir))
        # What others report after a rank has gone is what followed from it, and so is what the host
        # hears of SGLang: another rank may have told it before the death itself was seen here.
        if failure is not None and self._rank_gone_ns < math.inf:
            follows = failure.message == PROCESS_ENDED or failure.time_ns > self._rank_gone_ns
            failure = None if follows else failure
        if failure is not None:
            return Ending(failure.kind, failure.message)
        if "SIGKILL" in event and _oom_kills() > self._kills:
            return Ending("memory", "The kernel killed an engine process because memory ran out.")
        cause = self.process.output.cause()
        if re.search(r"OutOfMemoryError|out of memory|Cannot allocate memory", cause):
            return Ending("memory", f"The engine ran out of memory: {cause}")
        detail = f"; it printed: {cause}" if cause else ""
        return Ending("internal", f"The engine ended unexpectedly: {event}{detail}.")

    def _note_progress(self, timeout: float) -> None:
        activity = (self.state, self.ranks.progress(), self.process.output.lines)
        now = time.monotonic()
        if activity != self._activity:
            self._activity, self._active_at = activity, now
        elif now - self._active_at > timeout:
            phase = self.phase.name.lower()
            raise EngineEnded(
                Ending(
                    "internal",
                    f"The engine has made no progress for {timeout:g} s while {phase}; "
                    "--start-timeout allows more.",
                )
            )

    def _check_versions(self) -> None:
        if self.state is not None and self.state.ktd_version != __version__:
            raise EngineEnded(
                Ending(
                    "plugin",
                    f"The engine runs ktd {self.state.ktd_version or '(unknown)'} and the daemon "
                    f"{__version__}; install one version in both environments.",
                )
            )

    def _check_hellos(self) -> None:
        expected = len(self.process.spec.moe_layers)
        for rank, hello in self.ranks.hellos.items():
            hooked = int(hello.get("moe_layers_hooked", 0))
            if hooked != expected:
                raise EngineEnded(
                    Ending(
                        "plugin",
                        f"Rank {rank} hooked {hooked} of {expected} MoE layers; this SGLang "
                        "builds the others in a way that ktd does not know.",
                    )
                )

    def _rank_ended(self, rank: int, pid: int) -> None:
        if not self._suspect.done():
            self._rank_gone_ns = time.time_ns()
        self._suspected(f"the scheduler of rank {rank} (pid {pid}) has gone")

    def _suspected(self, event: str) -> None:
        if not self._suspect.done():
            self._suspect.set_result(event)

    async def _follow_host(self) -> None:
        how = await self.process.ended()
        self._suspected(f"the engine host (pid {self.process.pid}) ended with {how}")

    async def _follow_state(self) -> None:
        """Follows the host's state; it may not listen yet, and its end is seen elsewhere."""
        while True:
            with contextlib.suppress(ConnectionError):
                if self.process.spec.control_socket.exists():
                    async for state in self.bridge.watch_state():
                        self.state = state
                        if state.phase is EnginePhase.FAILED:
                            self._suspected(state.message or "the engine host reports a failure")
                        self._on_change()
            await asyncio.sleep(_CONNECT_SECONDS)


@contextlib.asynccontextmanager
async def alive(process: EngineProcess, on_change: Callable[[], None]) -> AsyncIterator[EngineLife]:
    """Watches ``process``; ``on_change`` is called often and must be cheap."""
    async with EngineBridge(process.spec.control_socket) as bridge:
        life = EngineLife(process, bridge, on_change)
        tasks = [
            asyncio.create_task(life._follow_host(), name="engine host"),  # noqa: SLF001 - same file
            asyncio.create_task(life._follow_state(), name="engine state"),  # noqa: SLF001 - same file
        ]
        try:
            yield life
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            life.ranks.close()


def _oom_kills() -> int:
    """How often the kernel has killed a process for memory since the host's start."""
    try:
        match = re.search(r"^oom_kill (\d+)$", _VMSTAT.read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(match.group(1)) if match else 0
