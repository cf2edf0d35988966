"""How bytes get into slots: on the host at once, on a GPU by a stream of their own."""

from __future__ import annotations

from collections import deque
from typing import Protocol

import torch

from ktd.cuda.driver import copy_async
from ktd.cuda.pinned_ring import PinnedRing
from ktd.cuda.streams import new_event, new_stream
from ktd.experts import _native
from ktd.sgl.slot_source import Copies, SlotPart

# In flight on a GPU before the host waits: enough to hide enqueuing, and what is reported as copied
# is so within a millisecond.
_PIECE_BYTES = 16 << 20
_PIECES = 4
# Of plain copies, which one thread enqueues: 10 ms, in which it may have to wait for the
# interpreter's lock twice before it comes to the next batch.
_PLAIN_BYTES = 512 << 20
# That such copies take in turn where the driver is given one at a time (csrc/slot_copies.h).
_PLAIN_STREAMS = 4
# That fill buffers while nothing else runs. Beside steps one does: the cores are the pool's.
_LOADING_THREADS = 4


class Mark(Protocol):
    """A place in what was enqueued."""

    def synchronize(self) -> None:
        """Returns when everything before it is done.

        Raises:
            RuntimeError: It failed.
        """
        ...


class CopyLane(Protocol):
    """What the copier needs to know of where slots are."""

    @property
    def runs_ahead(self) -> bool:
        """Whether copies are enqueued, and :meth:`mark` tells when they are done."""
        ...

    def order(self) -> torch.cuda.Event | None:
        """Called by the scheduler when it has unmapped a batch's slots; what copies wait for."""
        ...

    def enter(self, after: torch.cuda.Event | None) -> None:
        """Called by the copying thread before a batch."""
        ...

    def put(self, part: SlotPart, start: int, count: int) -> None:
        """Brings ``count`` units of a part, from ``start`` on, into its slot, or enqueues that.

        Called by the copying thread, and by the one that loads the engine before there are steps.
        """
        ...

    def copies(self, addresses: Copies, piece: int) -> _native.SlotCopies:
        """Plain copies of a batch in pieces of so many bytes; the copying thread runs them."""
        ...

    def mark(self) -> Mark | None:
        """Behind a batch: everything so far is in its slots when that is reached; None: it is."""
        ...


class HostLane:
    """Slots in host memory: a piece is there when it has been written."""

    runs_ahead = False

    def order(self) -> None:
        """Nothing is ahead: a step has finished when a control call runs."""

    def enter(self, after: torch.cuda.Event | None) -> None:
        """Nothing to wait for."""

    def put(self, part: SlotPart, start: int, count: int) -> None:
        """Written in the calling thread."""
        part.into(start, count, part.target(start, count))
        part.landed(start + count)

    def copies(self, addresses: Copies, piece: int) -> _native.SlotCopies:
        """Written in the calling thread, without the interpreter's lock."""
        return _native.SlotCopies(addresses, piece)

    def mark(self) -> None:
        """All is."""


class GpuLane:
    """Slots on a GPU, filled by DMA: from registered memory, and through pinned buffers from other.

    Copies wait on the device for the unmapping, which the scheduler enqueued between two steps; the
    copier alone waits for them to end, and what is published after that needs no other order.
    """

    runs_ahead = True

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = new_stream(device)
        self._beside = [new_stream(device) for _ in range(_PLAIN_STREAMS - 1)]
        self._pieces: deque[torch.cuda.Event] = deque()
        self._since = 0
        self._ring: PinnedRing | None = None  # most engines need none
        self._threads = _LOADING_THREADS

    def order(self) -> torch.cuda.Event:
        """An event behind everything that the current stream, the steps', has."""
        event = new_event()
        event.record()
        return event

    def enter(self, after: torch.cuda.Event | None) -> None:
        """Makes the lane's stream the thread's."""
        if self._ring is not None and self._threads > 1:
            self._ring.close()
        self._threads = 1
        torch.cuda.set_device(self._device)
        torch.cuda.set_stream(self._stream)
        if after is not None:
            self._stream.wait_event(after)

    def put(self, part: SlotPart, start: int, count: int) -> None:
        """Enqueued on the current stream; a few pieces are kept in flight."""
        target, source = part.target(start, count), part.as_is(start, count)
        num_bytes = count * part.unit_bytes
        if source is None:
            self._upload(target, part, start)
        else:
            address = torch.cuda.current_stream(self._device).cuda_stream
            copy_async(target.data_ptr(), source.data_ptr(), num_bytes, address)
        part.landed(start + count)
        self._since += num_bytes
        if self._since < _PIECE_BYTES:
            return
        self._since = 0
        self._pieces.append(self.mark())
        if len(self._pieces) > _PIECES:
            self._pieces.popleft().synchronize()

    def _upload(self, target: torch.Tensor, part: SlotPart, start: int) -> None:
        if self._ring is None:
            self._ring = PinnedRing(self._device)
        self._ring.upload(
            target,
            lambda at, count, out: part.into(start + at, count, out),
            threads=self._threads,
        )

    def copies(self, addresses: Copies, piece: int) -> _native.SlotCopies:
        """By DMA on the lane's stream; a busy scheduler's lock is not asked for meanwhile."""
        return _native.SlotCopies(
            addresses,
            piece,
            streams=[stream.cuda_stream for stream in (self._stream, *self._beside)],
            most_ahead=_PLAIN_BYTES,
        )

    def mark(self) -> torch.cuda.Event:
        """An event on the current stream, waited for without spinning."""
        event = new_event(blocking=True)
        event.record(torch.cuda.current_stream(self._device))
        return event


def lane_to(device: str) -> CopyLane:
    """The way into slots on ``"cpu"``, or on this process's GPU."""
    if device == "cpu":
        return HostLane()
    return GpuLane(torch.device("cuda", torch.cuda.current_device()))
