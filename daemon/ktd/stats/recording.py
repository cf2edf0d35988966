"""Recordings of the engine's passes, as an operator asks for them."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ktd.errors import (
    EngineNotReady,
    InvalidArgument,
    NothingRecorded,
    NotRecording,
    RecordingFailed,
    RecordingRuns,
)

if TYPE_CHECKING:
    from collections.abc import Callable

MODES = ("stat", "stat_approx", "per_pass", "per_token")
MAX_BYTES = 1 << 30
_LARGEST_BUFFER = 1 << 20


class RecorderReport(Protocol):
    """What a target says about its recorder; see ``ktd.engine.bridge.HostRecording``."""

    @property
    def recording(self) -> bool: ...  # noqa: D102
    @property
    def mode(self) -> str: ...  # noqa: D102
    @property
    def gpu_masks(self) -> bool: ...  # noqa: D102
    @property
    def passes(self) -> int: ...  # noqa: D102
    @property
    def dropped_passes(self) -> int: ...  # noqa: D102
    @property
    def tokens(self) -> int: ...  # noqa: D102
    @property
    def bytes(self) -> int: ...  # noqa: D102
    @property
    def files(self) -> tuple[str, ...]: ...  # noqa: D102


class RecordingTarget(Protocol):
    """A running engine; each call raises ``RecordingFailed`` with one sentence."""

    async def start_recording(
        self, mode: str, *, buffer_passes: int, max_bytes: int, gpu_masks: bool
    ) -> RecorderReport:
        """Begins to record with the next pass."""
        ...

    async def stop_recording(self) -> RecorderReport:
        """Keeps what was recorded until it is written."""
        ...

    async def dump_recording(self, folder: str) -> RecorderReport:
        """Writes what was recorded and begins anew; returns when the files are complete."""
        ...

    async def recording(self) -> RecorderReport:
        """How much has been recorded."""
        ...


@dataclass(frozen=True, slots=True)
class RecordingOptions:
    """What a recording does unless it is told otherwise.

    Attributes:
        mode: One of :data:`MODES`.
        folder: Where files are written.
        gpu_masks: Record which experts are in slots during each pass, too.
        buffer_passes: Passes that mode ``stat`` holds, the latest ones; -1: all.
    """

    mode: str
    folder: Path
    gpu_masks: bool = False
    buffer_passes: int = 1000


@dataclass(frozen=True, slots=True)
class Recording:
    """A recording at one moment; ``mode`` is empty where there is none.

    ``notes`` are sentences about what was dropped or cannot be had.
    """

    recording: bool
    mode: str
    folder: Path
    start_time: float | None
    gpu_masks: bool
    passes: int
    dropped_passes: int
    tokens: int
    bytes: int
    notes: tuple[str, ...] = ()


class Recordings:
    """Starts, stops and writes the one recording that there may be.

    A recording is in the engine's memory, so it ends with the engine.

    Args:
        defaults: What a recording does unless it is told otherwise.
        clock: Unix seconds.
    """

    def __init__(
        self, defaults: RecordingOptions, *, clock: Callable[[], float] = time.time
    ) -> None:
        self.defaults = defaults
        self._clock = clock
        self._target: RecordingTarget | None = None
        self._start_time: float | None = None
        self._folder = defaults.folder
        self._lost = ""
        # What is decided from a report must still be so when it is done.
        self._lock = asyncio.Lock()

    def attach(self, target: RecordingTarget) -> None:
        """An engine serves."""
        self._target = target

    def detach(self) -> None:
        """The engine is gone, and with it what it had recorded."""
        if self._target is not None and self._start_time is not None:
            self._lost = (
                "What was being recorded and had not been dumped was lost when the engine ended."
            )
        self._target = self._start_time = None

    async def get(self) -> Recording:
        """The recording now.

        Raises:
            EngineNotReady: no engine serves.
            RecordingFailed: the engine does not answer.
        """
        return self._shown(await self._running().recording())

    async def start(self, options: RecordingOptions) -> Recording:
        """Begins to record with the next pass.

        Raises:
            InvalidArgument: an option is out of range.
            RecordingRuns: a recording runs.
            RecordingFailed: the folder cannot be written, or the engine does not answer.
            EngineNotReady: no engine serves.
        """
        if options.mode not in MODES:
            raise InvalidArgument(f"There is no mode {options.mode!r}: {', '.join(MODES)}.")
        if not (options.buffer_passes == -1 or 0 < options.buffer_passes <= _LARGEST_BUFFER):
            raise InvalidArgument(
                f"The buffer is to hold {options.buffer_passes} passes, but must be -1 for all or "
                f"from 1 to {_LARGEST_BUFFER}."
            )
        async with self._lock:
            return await self._start(options)

    async def _start(self, options: RecordingOptions) -> Recording:
        target = self._running()
        before = await target.recording()
        if before.recording:
            raise RecordingRuns(
                f"A recording in mode {before.mode} has been running for {before.passes} passes; "
                "`ktd record dump` writes it, `ktd record stop` ends it."
            )
        _make(options.folder)
        report = await target.start_recording(
            options.mode,
            buffer_passes=options.buffer_passes,
            max_bytes=MAX_BYTES,
            gpu_masks=options.gpu_masks,
        )
        self._start_time, self._folder, self._lost = self._clock(), options.folder, ""
        notes: tuple[str, ...] = ()
        if before.passes:
            notes = (
                f"{before.passes} passes that had been recorded and not been dumped are forgotten.",
            )
        return self._shown(report, notes)

    async def stop(self) -> Recording:
        """Keeps what was recorded until it is dumped.

        Raises:
            NotRecording: no recording runs.
            RecordingFailed: the engine does not answer.
            EngineNotReady: no engine serves.
        """
        async with self._lock:
            target = self._running()
            if not (await target.recording()).recording:
                raise NotRecording(f"No recording runs. {self._lost}".rstrip())
            return self._shown(await target.stop_recording())

    async def dump(self, folder: Path | None = None) -> tuple[tuple[str, ...], Recording]:
        """Writes what was recorded; returns the paths and what they hold.

        Raises:
            NothingRecorded: no pass has run.
            RecordingFailed: the files cannot be written; what was recorded is kept.
            EngineNotReady: no engine serves.
        """
        async with self._lock:
            target = self._running()
            before = await target.recording()
            if not before.passes:
                why = "No pass has run since recording began." if before.recording else self._lost
                raise NothingRecorded(why or "Nothing was recorded; begin with `ktd record start`.")
            folder = folder or self._folder
            _make(folder)
            report = await target.dump_recording(str(folder))
            return report.files, self._shown(report)

    def _running(self) -> RecordingTarget:
        if self._target is None:
            raise EngineNotReady(
                "The engine is not serving, so nothing can be recorded; wait until `ktd status` "
                f"says READY. {self._lost}".rstrip()
            )
        return self._target

    def _shown(self, report: RecorderReport, notes: tuple[str, ...] = ()) -> Recording:
        if self._lost:
            notes = (*notes, self._lost)
        if report.dropped_passes:
            dropped = (
                f"{report.dropped_passes} of {report.passes} passes made room for later ones and "
                "are not in the recording."
            )
            notes = (*notes, dropped)
        return Recording(
            recording=report.recording,
            mode=report.mode,
            folder=self._folder,
            start_time=self._start_time,
            gpu_masks=report.gpu_masks,
            passes=report.passes,
            dropped_passes=report.dropped_passes,
            tokens=report.tokens,
            bytes=report.bytes,
            notes=notes,
        )


def _make(folder: Path) -> None:
    """Makes sure that the folder can be written before anything is recorded for it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".ktd-recording"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise RecordingFailed(
            f"The folder {folder} cannot be written ({error.strerror}); choose another one with "
            "--dir."
        ) from error
