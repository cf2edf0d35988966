"""Streams and events of torch, for code that is type-checked: torch leaves these calls untyped."""

from __future__ import annotations

from typing import Protocol

import torch


class AnyEvent(Protocol):
    """A mark behind work on a device; of one that was never recorded everything has finished."""

    def record(self) -> None:
        """Behind everything that the current stream has."""
        ...

    def synchronize(self) -> None:
        """Returns when what is before it has finished."""
        ...


def new_stream(device: torch.device) -> torch.cuda.Stream:
    """A stream beside the current one."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def new_event(*, blocking: bool = False, timing: bool = False) -> torch.cuda.Event:
    """An event; one that blocks lets the waiting thread sleep instead of spinning."""
    event: torch.cuda.Event = torch.cuda.Event(  # type: ignore[no-untyped-call]
        blocking=blocking, enable_timing=timing
    )
    return event


def new_event_on(device: torch.device) -> AnyEvent:
    """One whose waiting thread sleeps; on the CPU, where work ends with its call, none waits."""
    if device.type == "cuda":
        return new_event(blocking=True)
    event: AnyEvent = torch.cpu.Event()
    return event


def has_passed(event: torch.cuda.Event) -> bool:
    """Whether everything before the event has finished."""
    return bool(event.query())  # type: ignore[no-untyped-call]
