"""A way to a GPU for bytes that its copy engines cannot read where they are.

They are written into a few buffers of pinned memory in turn, from which copies go on by themselves:
while one buffer is being written the others are on their way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass

import torch

from ktd.cuda.driver import copy_async
from ktd.cuda.streams import AnyEvent, new_event_on

BUFFERS = 4
BUFFER_BYTES = 8 << 20
# Below this a second thread costs more than it saves.
_SHARE_BYTES = 1 << 20

# Writes the rows [start, start + count) of what is uploaded into host memory ``[count, …]``.
Fill = Callable[[int, int, torch.Tensor], None]


@dataclass(frozen=True, slots=True)
class _Buffer:
    memory: torch.Tensor  # uint8
    sent: AnyEvent


class PinnedRing:
    """Buffers for uploads to one device; of one thread at a time.

    Args:
        device: Where to. With ``cpu`` a copy has ended when it returns, and nothing is pinned.
        buffers: How many; up to so many copies are on their way.
        buffer_bytes: Of each, a multiple of 8.
    """

    def __init__(
        self, device: torch.device, *, buffers: int = BUFFERS, buffer_bytes: int = BUFFER_BYTES
    ) -> None:
        memory = torch.empty(
            (buffers, buffer_bytes),
            dtype=torch.uint8,
            device="cpu",
            pin_memory=device.type == "cuda",
        )
        self._buffer_bytes = buffer_bytes
        # The one in front was sent first.
        self._buffers = deque(_Buffer(row, new_event_on(device)) for row in memory)
        self._helpers: ThreadPoolExecutor | None = None

    def upload(self, target: torch.Tensor, fill: Fill, *, threads: int = 1) -> None:
        """Enqueues copies on the current stream; returns when all is in buffers at least.

        Args:
            target: ``[rows, …]`` on the device.
            fill: Is called for pieces of it, in order, by several threads at once if there are.
            threads: Call ``fill``, the calling one included; not more than at the first upload that
                has helpers, until :meth:`close`.

        Raises:
            ValueError: A row is larger than a buffer.
            CudaFailed: The driver refuses a copy.
            Exception: What ``fill`` raises; rows before those are copied or on their way.
        """
        row_bytes = target[0].numel() * target.element_size()
        most = self._buffer_bytes // row_bytes
        if most == 0:
            raise ValueError(
                f"a row of {row_bytes} bytes does not fit into a buffer of {self._buffer_bytes}"
            )
        if threads > 1 and self._helpers is None:
            self._helpers = ThreadPoolExecutor(threads - 1, thread_name_prefix="ktd-upload")
        for start in range(0, target.shape[0], most):
            rows = target[start : start + most]
            buffer = self._buffers[0]
            buffer.sent.synchronize()
            size = rows.shape[0] * row_bytes
            staged = buffer.memory[:size].view(target.dtype).view(rows.shape)
            self._fill(fill, start, staged, min(threads, -(-size // _SHARE_BYTES)))
            _enqueue(rows, staged)
            buffer.sent.record()
            self._buffers.rotate(-1)

    def _fill(self, fill: Fill, start: int, staged: torch.Tensor, threads: int) -> None:
        rows = staged.shape[0]
        share = -(-rows // threads)
        if share == rows or self._helpers is None:
            fill(start, rows, staged)
            return
        helping = [
            self._helpers.submit(fill, start + at, len(part), part)
            for at in range(share, rows, share)
            for part in (staged[at : at + share],)
        ]
        try:
            fill(start, share, staged[:share])
        finally:
            # Nobody writes into a buffer that the next caller gets.
            wait(helping)
        for help_ in helping:
            help_.result()

    def close(self) -> None:
        """Ends the helping threads; what is uploaded later gets new ones."""
        if self._helpers is not None:
            self._helpers.shutdown()
            self._helpers = None


def _enqueue(target: torch.Tensor, staged: torch.Tensor) -> None:
    if target.is_cuda and target.is_contiguous():
        copy_async(
            target.data_ptr(),
            staged.data_ptr(),
            staged.numel() * staged.element_size(),
            torch.cuda.current_stream().cuda_stream,
        )
    else:
        target.copy_(staged, non_blocking=True)
