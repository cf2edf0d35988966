"""Brings a GPU's counters to where the daemon reads them, beside the steps."""

from __future__ import annotations

import threading

import torch

from ktd.cuda.streams import new_event, new_stream

# How often a running engine's counters are copied, in seconds: the daemon samples them about so.
_INTERVAL = 0.1


class CounterCopier:
    """A thread with a stream of its own; it copies only after steps, and sleeps when there is none.

    Args:
        source: int64, on the device; written by steps.
        destination: int64 of the same shape, in host memory.
    """

    def __init__(self, source: torch.Tensor, destination: torch.Tensor) -> None:
        self._source = source
        self._destination = destination
        self._pinned = torch.empty(source.shape, dtype=source.dtype, device="cpu", pin_memory=True)
        self._stream = new_stream(source.device)
        self._lock = threading.Lock()  # held for a copy
        self._last: torch.cuda.Event | None = None  # behind the newest step
        self._wanted = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ktd-counters", daemon=True)

    def start(self) -> None:
        """Begins; steps that were launched before are copied with the next."""
        self._thread.start()

    def step_launched(self, event: torch.cuda.Event) -> None:
        """A step was launched, and ``event`` recorded behind it."""
        self._last = event
        self._wanted.set()

    def copy_now(self) -> None:
        """Waits for the newest step and copies."""
        with self._lock, torch.cuda.stream(self._stream):
            if self._last is not None:
                self._stream.wait_event(self._last)
            self._pinned.copy_(self._source, non_blocking=True)
            done = new_event(blocking=True)  # a spinning wait would take a core
            done.record()
            done.synchronize()
            self._destination.copy_(self._pinned)

    def reset(self) -> None:
        """Zeroes all counters behind the steps that the current stream has."""
        with self._lock:
            self._source.zero_()
            event = new_event()
            event.record()
            self._last = event
            self._destination.zero_()
        self._wanted.set()

    def stop(self) -> None:
        """Ends the thread."""
        self._stopping.set()
        self._wanted.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        torch.cuda.set_device(self._source.device)
        while True:
            self._wanted.wait()
            if self._stopping.is_set():
                return
            self._wanted.clear()
            self.copy_now()
            self._stopping.wait(_INTERVAL)
