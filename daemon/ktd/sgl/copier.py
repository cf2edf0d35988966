"""Copies experts into slots beside the steps, on a thread of its own, at a limited rate.

A slot being written is not mapped. Where slots are on a GPU, copies also wait for the steps that
were launched before the unmapping (copy_lane.py); beyond that nothing here is ordered against
inference. The outcome is published as the acknowledgement of the batch in the rank file.

A GPU's link works on while one batch ends and the next begins: a second thread waits for what the
first has enqueued. So between two batches of a busy engine, whose scheduler has the interpreter's
lock most of the time, nothing is idle.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ktd.sgl.copy_lane import CopyLane, HostLane, Mark
from ktd.sgl.expert_layer import SlotCopy, plain_copies
from ktd.sgl.slot_source import Copies

logger = logging.getLogger(__name__)

# Between two looks at stop(), and two additions to what was copied.
_TURN_SECONDS = 0.05
# Between two looks at the rate limit and at stop(): 1 ms of copying at 4 GB/s.
_CHUNK_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class _Job:
    """A batch, or the sentence with which it was refused."""

    batch_id: int
    copies: Sequence[SlotCopy] = ()
    follows: bool = False
    refused: str | None = None
    after: torch.cuda.Event | None = None


@dataclass(frozen=True, slots=True)
class _End:
    """What became of a batch as far as it was enqueued."""

    batch_id: int
    follows: bool = False
    failed: str | None = None
    refused: str | None = None
    mark: Mark | None = None


class Copier:
    """Works through batches of slot copies in order.

    Args:
        finished: Called with ``(batch_id, error)`` when a batch is done; error is one sentence.
        copied: Called with the bytes written of each finished piece.
        bytes_per_second: Rate limit, or None.
        lane: Where slots are; None: in host memory.
    """

    def __init__(
        self,
        *,
        finished: Callable[[int, str | None], None],
        copied: Callable[[int], None],
        bytes_per_second: float | None,
        lane: CopyLane | None = None,
    ) -> None:
        self._finished = finished
        self._copied = copied
        self._rate = bytes_per_second
        self._lane: CopyLane = HostLane() if lane is None else lane
        self._stopping = threading.Event()
        self._failed: str | None = None  # the batch that ended last
        self._jobs: queue.Queue[_Job | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, name="ktd-copier", daemon=True)
        self._ends: queue.Queue[_End | None] | None = None
        self._waiter: threading.Thread | None = None
        if self._lane.runs_ahead:
            self._ends = queue.Queue()
            self._waiter = threading.Thread(target=self._wait, name="ktd-copied", daemon=True)
            self._waiter.start()
        self._thread.start()

    def submit(self, batch_id: int, copies: Sequence[SlotCopy], *, follows: bool = False) -> None:
        """Queues a batch and returns at once; its slots have been unmapped.

        Args:
            batch_id: Greater than the one before.
            copies: What is written.
            follows: Whether a batch before it is still open: if that one fails, so does this, for
                there is one acknowledgement and the later must not hide the failure.
        """
        self._jobs.put(_Job(batch_id, copies, follows, after=self._lane.order()))

    def refuse(self, batch_id: int, sentence: str) -> None:
        """Reports a batch as failed, in order: the acknowledgement has one writer, the thread."""
        self._jobs.put(_Job(batch_id, refused=sentence))

    def stop(self) -> None:
        """Ends the threads after the piece that is being copied."""
        self._stopping.set()
        self._jobs.put(None)
        self._thread.join()
        if self._waiter is not None:
            self._waiter.join()

    def _run(self) -> None:
        failed: str | None = None
        while (job := self._jobs.get()) is not None:
            if job.refused is not None:
                end = _End(job.batch_id, refused=job.refused)
            elif job.follows and failed is not None:
                end = _End(job.batch_id, follows=True, failed=failed)
            else:
                end = self._try(job)
                failed = end.failed
            if self._ends is None:
                self._end(end)
            else:
                self._ends.put(end)
        if self._ends is not None:
            self._ends.put(None)

    def _wait(self) -> None:
        ends = self._ends
        while ends is not None and (end := ends.get()) is not None:
            self._end(end)

    def _end(self, end: _End) -> None:
        """Waits for what was enqueued and reports the batch; by one thread, in order."""
        if end.refused is not None:
            self._finished(end.batch_id, end.refused)
            return
        failed = end.failed
        try:
            if end.mark is not None:
                end.mark.synchronize()
        except Exception as error:  # the batch fails, the thread lives
            logger.exception("copying batch %d failed", end.batch_id)
            failed = failed or _sentence(error)
        if end.follows and failed is None:
            failed = self._failed
        self._failed = failed
        self._finished(end.batch_id, failed)

    def _try(self, job: _Job) -> _End:
        failed: str | None = None
        mark: Mark | None = None
        try:
            self._lane.enter(job.after)
            plain, others = plain_copies(job.copies)
            for copy in others:
                self._copy(copy)
            self._run_copies(plain)
        except Exception as error:  # the batch fails, the thread lives
            logger.exception("copying batch %d failed", job.batch_id)
            failed = _sentence(error)
        try:
            mark = self._lane.mark()  # also of a batch that failed: its slots are taken again
        except Exception as error:
            logger.exception("batch %d cannot be waited for", job.batch_id)
            failed = failed or _sentence(error)
        return _End(job.batch_id, job.follows, failed, mark=mark)

    def _run_copies(self, addresses: Copies) -> None:
        copies = self._lane.copies(addresses, self._chunk_bytes())
        try:
            while not copies.done:
                self._copied(copies.run(_TURN_SECONDS, self._rate or 0.0))
                if self._stopping.is_set() and not copies.done:
                    raise RuntimeError("the engine is stopping")
        finally:
            copies.finish()

    def _copy(self, copy: SlotCopy) -> None:
        for part in copy.parts:
            step = max(1, self._chunk_bytes() // part.unit_bytes)
            for start in range(0, part.units, step):
                began = time.monotonic()
                count = min(step, part.units - start)
                self._lane.put(part, start, count)
                num_bytes = count * part.unit_bytes
                self._copied(num_bytes)
                if self._rate:
                    used = time.monotonic() - began
                    if self._stopping.wait(max(0.0, num_bytes / self._rate - used)):
                        raise RuntimeError("the engine is stopping")

    def _chunk_bytes(self) -> int:
        # A slow limit is kept in steps of at most a tenth of a second, so that progress shows.
        return min(_CHUNK_BYTES, max(4096, int(self._rate / 10))) if self._rate else _CHUNK_BYTES


def _sentence(error: Exception) -> str:
    return f"copying into a slot failed: {error}"
