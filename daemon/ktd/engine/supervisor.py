"""Keeps an engine running: start, crash and backoff, stop with drain, and what to say about it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ktd.engine.board import StatusBoard
from ktd.engine.bridge import EngineBridge
from ktd.engine.launcher import HOST_COMMAND, EngineProcess, launched
from ktd.engine.life import Ending, EngineEnded, EngineLife, alive
from ktd.engine.load_speed import LoadSpeed
from ktd.engine.ports import Engines, Log
from ktd.engine.status import EnginePhase, EngineStatus, Versions
from ktd.enginespec import EngineSpec
from ktd.errors import EngineFailed, EngineNotStopped, KtdError, SwapTargetFailed
from ktd.rankfile import Word
from ktd.version import __version__

BACKOFF_SECONDS = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
_STABLE_SECONDS = 60.0
# An engine that was never ready and crashes this often will not become ready.
_FIRST_START_ATTEMPTS = 3
# Shutdown asked for, SIGTERM, SIGKILL: with the drain of at most 20 s all is over within 30.
_ASKED_SECONDS = 2.0
_TERM_SECONDS = 2.0
_STOPPED = "The engine is being stopped."
# Between two lines in the log that say how loading goes.
_LINE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds: without progress until a start has failed; for requests in flight on a stop."""

    start: float = 600.0
    drain: float = 20.0
    backoff: Sequence[float] = BACKOFF_SECONDS


class Supervisor:
    """Owns the engine's process and its status.

    :meth:`run` is the one task that starts and ends engines; everything else asks it to.
    """

    def __init__(
        self,
        engines: Engines,
        *,
        log: Log,
        num_ranks: int,
        board: StatusBoard,
        timings: Timings | None = None,
        command: Sequence[str] = HOST_COMMAND,
        in_flight: Callable[[], int] = lambda: 0,
    ) -> None:
        self._engines = engines
        self._in_flight = in_flight
        self._log = log
        self._num_ranks = num_ranks
        self._timings = timings or Timings()
        self._command = tuple(command)
        self._board = board
        self._wanted = True
        self._closing = False
        self._forced = asyncio.Event()
        self._asked = asyncio.Event()
        self._drain = self._timings.drain
        self._life: EngineLife | None = None
        self._was_ready = False
        self._crashes = 0
        self._speed = LoadSpeed()
        self._next_line = 0.0

    def status(self) -> EngineStatus:
        """The status now."""
        return replace(self._board.status, requests_in_flight=self._in_flight())

    def watch(self) -> AsyncIterator[EngineStatus]:
        """The status now, then each change; ends when the daemon shuts down."""
        return self._board.watch()

    def complaint(self) -> str:
        """Why no request is served, in one sentence, or an empty string; looks at heartbeats."""
        status = self._board.status
        if not status.phase.serving or self._life is None:
            return status.message
        return self._life.ranks.complaint()

    async def start(self) -> EngineStatus:
        """Starts a stopped or failed engine and returns at once.

        Raises:
            EngineNotStopped: it is running, or will be started again by itself.
        """
        if (
            self._board.status.phase not in (EnginePhase.STOPPED, EnginePhase.FAILED)
            or self._closing
        ):
            phase = self._board.status.phase.name
            raise EngineNotStopped(f"The engine is {phase}; stop it first, or restart it.")
        self._wanted = True
        self._crashes = 0
        self._board.enter(EnginePhase.STARTING, "The engine is being started.")
        self._asked.set()
        return self.status()

    async def stop(self, drain: float | None) -> EngineStatus:
        """Drains for up to ``drain`` seconds, stops the engine and returns when it is gone."""
        self._wanted = False
        self._drain = self._timings.drain if drain is None else drain
        self._asked.set()
        await self._until(lambda status: status.phase is EnginePhase.STOPPED)
        return self.status()

    async def restart(self, drain: float | None) -> EngineStatus:
        """Stops the engine, starts it with the last committed placement, and returns then."""
        await self.stop(drain)
        return await self.start()

    async def close(self) -> None:
        """The daemon ends: drains, stops the engine, and makes :meth:`run` return."""
        self._closing = True
        self._wanted = False
        self._drain = self._timings.drain
        self._asked.set()
        await self._until(lambda status: status.phase is EnginePhase.STOPPED)

    def force(self) -> None:
        """No more waiting: whatever is being stopped is killed now."""
        self._closing = True
        self._wanted = False
        self._forced.set()
        self._asked.set()

    async def run(self) -> None:
        """Runs engines until :meth:`close`.

        Raises:
            EngineFailed: the first start failed in a way that will not change; the ``kind``
                of :class:`ktd.enginespec.Failure` is in its metadata.
            KtdError: the first ``next_spec`` raised it.
        """
        while not self._closing:
            if not self._wanted:
                self._board.enter(
                    EnginePhase.STOPPED, "The engine is stopped; start it with StartEngine."
                )
                await self._ask()
                continue
            self._asked.clear()
            ending = await self._one_life()
            if ending is None or not self._wanted:
                continue
            await self._after_crash(ending)
        self._board.enter(EnginePhase.STOPPED, "The daemon is shutting down.")
        self._board.close()

    async def _one_life(self) -> Ending | None:
        """Runs one engine to its end: None if that was asked for."""
        self._board.update(ranks=(), next_start_time=None)
        self._board.enter(EnginePhase.STARTING, "The engine is being started.")
        try:
            spec = await self._planned()
            if spec is None:
                return None
            self._board.update(engine_id=spec.engine_id)
            self._board.say("The engine is starting; SGLang is being imported.")
            async with (
                launched(spec, emit=self._emitter(spec), command=self._command) as process,
                alive(process, self._refresh) as life,
            ):
                self._log.info("engine started", pid=process.pid, engine_id=spec.engine_id)
                self._life = life
                reason = _STOPPED
                try:
                    await self._live(life, spec)
                except EngineEnded as ended:
                    reason = ended.ending.message
                    raise
                finally:
                    self._life = None
                    await self._engines.detach(reason)
        except EngineEnded as ended:
            return ended.ending
        except SwapTargetFailed as error:
            return Ending("internal", str(error))
        except OSError as error:
            return Ending("internal", f"The engine host cannot be started: {error}.")
        except KtdError as error:
            return Ending("refused", str(error), error)
        return None

    async def _planned(self) -> EngineSpec | None:
        """The next spec, or None if a stop was asked for meanwhile."""
        planning = asyncio.ensure_future(self._engines.next_spec())
        asked = asyncio.ensure_future(self._asked.wait())
        try:
            await asyncio.wait((planning, asked), return_when=asyncio.FIRST_COMPLETED)
            return planning.result() if planning.done() else None
        finally:
            planning.cancel()
            asked.cancel()
            await asyncio.gather(planning, asked, return_exceptions=True)

    async def _live(self, life: EngineLife, spec: EngineSpec) -> None:
        ready = life.until_ready(num_ranks=self._num_ranks, timeout=self._timings.start)
        if not await self._unless_asked(ready):
            await self._end(life.process, life.bridge)
            return
        await self._engines.attach(life.bridge, spec)
        self._refresh()
        self._board.enter(EnginePhase.READY, "Requests are served.")
        self._was_ready = True
        self._log.info("engine ready", engine_id=spec.engine_id)
        if await self._unless_asked(life.until_ended()):
            return
        self._board.enter(
            EnginePhase.DRAINING, "No new requests; those in flight are being finished."
        )
        draining = asyncio.ensure_future(self._engines.drain(self._drain))
        await self._first(draining, self._forced.wait(), life.until_ended())
        await self._engines.detach(_STOPPED)
        await self._end(life.process, life.bridge)

    async def _end(self, process: EngineProcess, bridge: EngineBridge) -> None:
        """Asks, then tells; leaving :func:`launched` kills what is left."""
        self._board.enter(EnginePhase.STOPPING, "The engine is being stopped.")
        if self._forced.is_set():
            return
        with contextlib.suppress(SwapTargetFailed):
            await bridge.shutdown()
            if await self._first(process.ended(), self._forced.wait(), seconds=_ASKED_SECONDS):
                return
        process.signal(signal.SIGTERM)
        await self._first(process.ended(), self._forced.wait(), seconds=_TERM_SECONDS)

    async def _after_crash(self, ending: Ending) -> None:
        """Waits and lets :meth:`run` start again, or says that this would not help."""
        message = ending.message
        if ending.kind == "memory":
            message = f"{message} {self._engines.advice()}"
        lasted = time.time() - self._board.status.phase_time
        if self._board.status.phase is EnginePhase.READY and lasted >= _STABLE_SECONDS:
            self._crashes = 0
        self._crashes += 1
        hopeless = ending.kind != "internal"
        tried = not self._was_ready and self._crashes >= _FIRST_START_ATTEMPTS
        if not self._was_ready and (hopeless or tried):
            self._board.enter(EnginePhase.FAILED, message)
            self._board.close()
            raise ending.error or EngineFailed(message, kind=ending.kind)
        if hopeless:
            self._log.error("engine cannot be started", reason=message, kind=ending.kind)
            self._wanted = False
            self._board.enter(EnginePhase.FAILED, message)
            await self._ask()
            return
        delay = self._timings.backoff[min(self._crashes, len(self._timings.backoff)) - 1]
        self._board.update(
            restarts=self._board.status.restarts + 1, next_start_time=time.time() + delay
        )
        self._log.error("engine ended unexpectedly", reason=message, again_in_seconds=delay)
        self._board.report("ENGINE_RESTARTED", message)
        self._board.enter(EnginePhase.BACKOFF, f"{message} It is started again in {delay:g} s.")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._asked.wait(), delay)

    async def _ask(self) -> None:
        """Waits until somebody wants something."""
        self._asked.clear()
        if not self._wanted and not self._closing:
            await self._asked.wait()

    async def _unless_asked(self, work: Awaitable[None]) -> bool:
        """Does ``work`` unless a stop is asked for first; whether it was done."""
        return await self._first(work, self._asked.wait())

    @staticmethod
    async def _first(
        work: Awaitable[Any], *others: Awaitable[Any], seconds: float | None = None
    ) -> bool:
        """Waits for the first to finish or for ``seconds``; whether that was ``work``.

        What ``work`` raises is raised here, also when the others finish at the same moment.
        """
        tasks = [asyncio.ensure_future(item) for item in (work, *others)]
        try:
            await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if tasks[0].done():
                await tasks[0]
                return True
            return False
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _emitter(self, spec: EngineSpec) -> Callable[[str], None]:
        def emit(line: str) -> None:
            self._log.info("engine", line=line, engine_id=spec.engine_id)

        return emit

    def _refresh(self) -> None:
        """Takes over what the living engine shows."""
        life = self._life
        if life is None or self._board.status.phase > EnginePhase.READY:
            return
        versions = self._board.status.versions
        if life.state is not None:
            versions = Versions(__version__, life.state.sglang_version, life.state.torch_version)
        progress = life.ranks.progress()
        memory = self._board.status.memory
        if memory is not None:
            memory = replace(
                memory,
                host_store_bytes=progress.bytes_done,
                slot_bytes=life.ranks.total(Word.SLOT_BYTES),
                host_copied_bytes=life.ranks.copied_bytes(),
            )
        self._board.update(
            versions=versions,
            ranks=life.ranks.summaries(),
            memory=memory,
            progress=progress if life.phase is EnginePhase.LOADING else None,
        )
        if self._board.status.phase < EnginePhase.READY and life.phase < EnginePhase.READY:
            self._board.enter(life.phase, self._describe(life))

    async def _until(self, reached: Callable[[EngineStatus], bool]) -> None:
        async for status in self.watch():
            if reached(status):
                return

    def _describe(self, life: EngineLife) -> str:
        if life.phase is EnginePhase.WARMING:
            return "Loaded; the first request is being run."
        if life.phase is not EnginePhase.LOADING:
            return "The engine is starting; SGLang is being imported."
        progress = life.ranks.progress()
        if not progress.bytes_total:
            return "Loading weights."
        now = time.monotonic()
        self._speed.note(progress, now)
        text = f"Loading weights: {self._speed.text(progress)}"
        if now >= self._next_line:
            self._next_line = now + _LINE_SECONDS
            self._log.info("loading", progress=text)
        return text
