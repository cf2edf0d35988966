"""Copies experts into slots beside the steps, on a thread of its own, at a limited rate.

A slot being written is not mapped. Where slots are on a GPU, copies also wait for the steps that
were launched before the unmapping (copy_lane.py); beyond that nothing here is ordered against
inference. The outcome is published as the acknowledgement of the batch in the rank file.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ktd.sgl.copy_lane import CopyLane, HostLane
from ktd.sgl.expert_layer import SlotCopy
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


class Copier:
    """One thread that works through batches of slot copies in order.

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
        self._jobs: queue.Queue[_Job | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, name="ktd-copier", daemon=True)
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
        """Ends the thread after the piece it is copying."""
        self._stopping.set()
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        failed: str | None = None
        while (job := self._jobs.get()) is not None:
            if job.refused is not None:
                self._finished(job.batch_id, job.refused)
                continue
            if not job.follows:
                failed = None
            if failed is None:
                failed = self._try(job)
            self._finished(job.batch_id, failed)

    def _try(self, job: _Job) -> str | None:
        try:
            self._lane.enter(job.after)
            plain: Copies = []
            for copy in job.copies:
                addresses = copy.addresses()
                if addresses is None:
                    self._copy(copy)
                else:
                    plain += addresses
            self._run_copies(plain)
            self._lane.finish()
        except Exception as error:  # the batch fails, the thread lives
            logger.exception("copying batch %d failed", job.batch_id)
            return f"copying into a slot failed: {error}"
        return None

    def _run_copies(self, addresses: Copies) -> None:
        copies = self._lane.copies(addresses, self._chunk_bytes())
        while not copies.done:
            self._copied(copies.run(_TURN_SECONDS, self._rate or 0.0))
            if self._stopping.is_set() and not copies.done:
                raise RuntimeError("the engine is stopping")

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
