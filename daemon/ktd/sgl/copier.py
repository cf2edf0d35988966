"""Copies experts into slots beside the steps, on a thread of its own, at a limited rate.

A slot being written is not mapped, so nothing here needs to be ordered against inference; only
the outcome is published, as the acknowledgement of the batch in the rank file.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence

from ktd.sgl.expert_layer import SlotCopy

logger = logging.getLogger(__name__)

# Between two looks at the rate limit and at stop(): 1 ms of copying at 4 GB/s.
_CHUNK_BYTES = 4 << 20


class Copier:
    """One thread that works through batches of slot copies in order.

    Args:
        finished: Called with ``(batch_id, error)`` when a batch is done; error is one sentence.
        copied: Called with the bytes written of each finished piece.
        bytes_per_second: Rate limit, or None.
    """

    def __init__(
        self,
        *,
        finished: Callable[[int, str | None], None],
        copied: Callable[[int], None],
        bytes_per_second: float | None,
    ) -> None:
        self._finished = finished
        self._copied = copied
        self._rate = bytes_per_second
        self._stopping = threading.Event()
        self._jobs: queue.Queue[tuple[int, Sequence[SlotCopy] | str] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, name="ktd-copier", daemon=True)
        self._thread.start()

    def submit(self, batch_id: int, copies: Sequence[SlotCopy]) -> None:
        """Queues a batch and returns at once."""
        self._jobs.put((batch_id, copies))

    def refuse(self, batch_id: int, sentence: str) -> None:
        """Reports a batch as failed, in order: the acknowledgement has one writer, the thread."""
        self._jobs.put((batch_id, sentence))

    def stop(self) -> None:
        """Ends the thread after the piece it is copying."""
        self._stopping.set()
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            batch_id, copies = job
            if isinstance(copies, str):
                self._finished(batch_id, copies)
                continue
            try:
                for copy in copies:
                    self._copy(copy)
            except Exception as error:  # the batch fails, the thread lives
                logger.exception("copying batch %d failed", batch_id)
                self._finished(batch_id, f"copying into a slot failed: {error}")
            else:
                self._finished(batch_id, None)

    def _copy(self, copy: SlotCopy) -> None:
        for part in copy.parts:
            step = max(1, self._chunk_bytes() // part.unit_bytes)
            for start in range(0, part.units, step):
                began = time.monotonic()
                count = min(step, part.units - start)
                part.fill(start, count)
                num_bytes = count * part.unit_bytes
                self._copied(num_bytes)
                if self._rate:
                    used = time.monotonic() - began
                    if self._stopping.wait(max(0.0, num_bytes / self._rate - used)):
                        raise RuntimeError("the engine is stopping")

    def _chunk_bytes(self) -> int:
        # A slow limit is kept in steps of at most a tenth of a second, so that progress shows.
        return min(_CHUNK_BYTES, max(4096, int(self._rate / 10))) if self._rate else _CHUNK_BYTES
