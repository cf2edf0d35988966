"""The rank files of one engine as the supervisor reads them: hello, progress, life signs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ktd.engine.pidfd import process_ended
from ktd.engine.status import LoadProgress, RankSummary
from ktd.rankfile import RankFileReader, Word, path_of

# An idle scheduler wakes at least once a second; a step may be a long prefill on the CPU.
HEARTBEAT_SECONDS = 20.0
STEP_SECONDS = 900.0
_BILLION = 1e9


class Ranks:
    """Opens each rank's file when it appears, and watches the process behind it.

    ``on_exit(rank, pid)`` is called on the event loop as soon as a rank's process has ended.
    """

    def __init__(self, runtime_dir: Path, on_exit: Callable[[int, int], None]) -> None:
        self._runtime_dir = runtime_dir
        self._on_exit = on_exit
        self._files: dict[int, RankFileReader] = {}
        self._watchers: list[asyncio.Task[None]] = []
        self._hellos: dict[int, dict[str, Any]] = {}

    def look(self, count: int) -> None:
        """Opens the files of ranks ``0..count-1`` that have appeared since the last look."""
        for rank in range(count):
            if rank in self._files:
                continue
            try:
                file = RankFileReader(path_of(self._runtime_dir, rank))
            except (OSError, ValueError):
                # Not there yet, or not complete; a wrong version shows as a hello that never comes.
                continue
            self._files[rank] = file
            self._watchers.append(asyncio.create_task(self._watch(rank, file.pid)))

    @property
    def hellos(self) -> dict[int, dict[str, Any]]:
        """Hello of each rank that has said it."""
        for rank, file in self._files.items():
            if rank not in self._hellos and (hello := file.hello()) is not None:
                self._hellos[rank] = hello
        return self._hellos

    def progress(self) -> LoadProgress:
        """Expert bytes in the host store, over the ranks seen."""
        return LoadProgress(
            sum(file.word(Word.LOADED_BYTES) for file in self._files.values()),
            sum(file.word(Word.TOTAL_BYTES) for file in self._files.values()),
        )

    def total(self, word: Word) -> int:
        """One word, summed over the ranks."""
        return sum(file.word(word) for file in self._files.values())

    def copied_bytes(self) -> int:
        """Expert bytes in memory of the ranks' own, over those that have said hello."""
        return sum(int(hello.get("host_copied_bytes", 0)) for hello in self.hellos.values())

    def summaries(self) -> tuple[RankSummary, ...]:
        """The ranks that have said hello, as an operator sees them."""
        return tuple(
            RankSummary(
                rank=rank,
                pid=self._files[rank].pid,
                isa=str(hello.get("isa", "")),
                threads=int(hello.get("threads", 0)),
                moe_layers_hooked=int(hello.get("moe_layers_hooked", 0)),
                device=str(hello.get("device", "")),
                prefill_graphs=bool(hello.get("prefill_graphs", False)),
                prefill_threshold=int(hello.get("prefill_threshold", 0)),
                prefill_buffer_bytes=int(hello.get("prefill_buffer_bytes", 0)),
            )
            for rank, hello in sorted(self.hellos.items())
        )

    def complaint(self) -> str:
        """Why a rank is no longer to be trusted, or an empty string."""
        now = time.monotonic_ns()
        for rank, file in self._files.items():
            if error := file.word(Word.ERROR):
                return f"rank {rank} (pid {file.pid}) gave up a step (error word {error})"
            beat = file.word(Word.HEARTBEAT_NS)
            limit = STEP_SECONDS if file.word(Word.IN_STEP) else HEARTBEAT_SECONDS
            age = (now - beat) / _BILLION
            if beat and age > limit:
                return f"rank {rank} (pid {file.pid}) has not shown life for {age:.0f} s"
        return ""

    def close(self) -> None:
        """Unmaps the files and forgets the processes."""
        for watcher in self._watchers:
            watcher.cancel()
        self._watchers.clear()
        for file in self._files.values():
            file.close()
        self._files.clear()

    async def _watch(self, rank: int, pid: int) -> None:
        await process_ended(pid)
        self._on_exit(rank, pid)
