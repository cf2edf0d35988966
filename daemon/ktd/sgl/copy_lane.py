"""How bytes get into slots: on the host at once, on a GPU by a stream of their own."""

from __future__ import annotations

from collections import deque
from typing import Protocol

import torch

from ktd.cuda.streams import new_event, new_stream

# In flight on a GPU before the host waits: enough to hide enqueuing, and what is reported as copied
# is so within a millisecond.
_PIECE_BYTES = 16 << 20
_PIECES = 4


class CopyLane(Protocol):
    """What the copier needs to know of where slots are."""

    def order(self) -> torch.cuda.Event | None:
        """Called by the scheduler when it has unmapped a batch's slots; what copies wait for."""
        ...

    def enter(self, after: torch.cuda.Event | None) -> None:
        """Called by the copying thread before a batch."""
        ...

    def wrote(self, num_bytes: int) -> None:
        """Called by it behind each piece that it enqueued or wrote."""
        ...

    def finish(self) -> None:
        """Returns when the whole batch is in its slots."""
        ...


class HostLane:
    """Slots in host memory: a piece is there when it has been written."""

    def order(self) -> None:
        """Nothing is ahead: a step has finished when a control call runs."""

    def enter(self, after: torch.cuda.Event | None) -> None:
        """Nothing to wait for."""

    def wrote(self, num_bytes: int) -> None:
        """It is there."""

    def finish(self) -> None:
        """All is."""


class GpuLane:
    """Slots on a GPU, filled by DMA from registered memory.

    Copies wait on the device for the unmapping, which the scheduler enqueued between two steps; the
    copying thread alone waits for them to end, and what is published after it needs no other order.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = new_stream(device)
        self._pieces: deque[torch.cuda.Event] = deque()
        self._since = 0

    def order(self) -> torch.cuda.Event:
        """An event behind everything that the current stream, the steps', has."""
        event = new_event()
        event.record()
        return event

    def enter(self, after: torch.cuda.Event | None) -> None:
        """Makes the lane's stream the thread's."""
        torch.cuda.set_device(self._device)
        torch.cuda.set_stream(self._stream)
        if after is not None:
            self._stream.wait_event(after)

    def wrote(self, num_bytes: int) -> None:
        """Keeps a few pieces in flight."""
        self._since += num_bytes
        if self._since < _PIECE_BYTES:
            return
        self._since = 0
        self._pieces.append(self._mark())
        if len(self._pieces) > _PIECES:
            self._pieces.popleft().synchronize()

    def finish(self) -> None:
        """Waits without spinning."""
        self._pieces.clear()
        self._mark().synchronize()

    def _mark(self) -> torch.cuda.Event:
        event = new_event(blocking=True)
        event.record(self._stream)
        return event
