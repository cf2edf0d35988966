"""Streams and events of torch, for code that is type-checked: torch leaves these calls untyped."""

from __future__ import annotations

import torch


def new_stream(device: torch.device) -> torch.cuda.Stream:
    """A stream beside the current one."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def new_event(*, blocking: bool = False, timing: bool = False) -> torch.cuda.Event:
    """An event; one that blocks lets the waiting thread sleep instead of spinning."""
    event: torch.cuda.Event = torch.cuda.Event(  # type: ignore[no-untyped-call]
        blocking=blocking, enable_timing=timing
    )
    return event


def has_passed(event: torch.cuda.Event) -> bool:
    """Whether everything before the event has finished."""
    return bool(event.query())  # type: ignore[no-untyped-call]
