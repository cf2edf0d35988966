"""Measures long prefills that the CPU has a share of: its own time, and that of what goes between.

A layer's call to the CPU waits for the CPU's last answer and what the GPU does behind it: adding
it, attention, the router, publishing. Events on the stream of the steps tell how long that takes,
and events on the copies' stream what they take, whatever the other waits for; the pool itself
counts the seconds of its long calls.
"""

from __future__ import annotations

import logging
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self

from ktd.sgl.prefill_share import PassTimes, PrefillShare

logger = logging.getLogger(__name__)

_MOST = 4  # times the median


class TimedEvent(Protocol):
    """As torch's events that measure time."""

    def record(self) -> None:
        """Behind everything that the current stream has."""
        ...

    def query(self) -> bool:
        """Whether that has finished."""
        ...

    def elapsed_time(self, later: Self) -> float:
        """Milliseconds from this event to a later one; both have passed."""
        ...


@dataclass(slots=True)
class _Pass:
    """One step whose calls are long.

    Attributes:
        end: Behind it.
        tokens: If it passes through the prefill stream, else 0.
        layers: That do.
        experts: That the CPU has of it.
        published: Behind each layer's call.
        answered: Behind each layer's answer, before it is added.
        copies: Before and behind each piece's copies, on their stream.
        copied: Experts that came over the link with them.
    """

    end: TimedEvent
    tokens: int = 0
    layers: int = 0
    experts: int = 0
    published: list[TimedEvent] = field(default_factory=list)
    answered: list[TimedEvent] = field(default_factory=list)
    copies: list[tuple[TimedEvent, TimedEvent]] = field(default_factory=list)
    copied: int = 0


class PrefillClock:
    """Tells a share what its passes took, once they have ended.

    Args:
        share: Learns; an attribute too.
        spent: Seconds that the pool's long calls have taken so far.
        new_event: Makes one.
    """

    def __init__(
        self,
        share: PrefillShare,
        spent: Callable[[], float],
        new_event: Callable[[], TimedEvent],
    ) -> None:
        self.share = share
        self._spent = spent
        self._new_event = new_event
        self._before = spent()
        self._launching: _Pass | None = None
        self._running: deque[_Pass] = deque()

    def begin(self, tokens: int = 0, layers: int = 0, experts: int = 0) -> None:
        """A step with long calls is about to be launched.

        Args:
            tokens: If it passes through the prefill stream.
            layers: That do then.
            experts: That the CPU has of it then, in all layers together.
        """
        self._launching = _Pass(self._new_event(), tokens, layers, experts)

    def published(self) -> None:
        """A layer's call has been enqueued."""
        if self._launching is not None and self._launching.experts:
            self._launching.published.append(self._mark())

    def answered(self) -> TimedEvent | None:
        """An event to be recorded behind a layer's answer, before it is added; None: needless."""
        if self._launching is None or not self._launching.experts:
            return None
        event = self._new_event()
        self._launching.answered.append(event)
        return event

    def copying(self) -> None:
        """A piece's copies are enqueued next, on the current stream."""
        if self._launching is not None:
            self._launching.copies.append((self._mark(), self._new_event()))

    def copied(self, experts: int) -> None:
        """They have been, and brought so many experts over the link."""
        if self._launching is not None:
            self._launching.copies[-1][1].record()
            self._launching.copied += experts

    def launched(self) -> None:
        """The step has been launched, if it was one with long calls."""
        if self._launching is not None:
            self._launching.end.record()
            self._running.append(self._launching)
            self._launching = None

    def look(self) -> None:
        """Learns from what has ended; called before the results of every step are used.

        Where several steps ended at once nobody knows whose the CPU's seconds are, and none of them
        teaches anything; nor does a pass too short for the pool to count its calls.
        """
        ended = []
        while self._running and self._running[0].end.query():
            ended.append(self._running.popleft())
        if not ended:
            return
        spent = self._spent()
        took, self._before = spent - self._before, spent
        last = ended[-1]
        if len(ended) > 1 or not last.tokens or (last.experts and not took):
            return
        times = PassTimes(
            last.tokens,
            last.layers,
            last.experts,
            cpu_seconds=took,
            other_seconds=_between(last.answered, last.published),
            copied=last.copied,
            copy_seconds=sum(1e-3 * before.elapsed_time(after) for before, after in last.copies),
        )
        self.share.learn(times)
        logger.info("prefill divided between link and CPU: %s", times)

    def _mark(self) -> TimedEvent:
        event = self._new_event()
        event.record()
        return event


def _between(answered: Sequence[TimedEvent], published: Sequence[TimedEvent]) -> float:
    """Seconds, mean, from an answer to the next layer's call; 0 of a single layer.

    In the first pass some kernels are compiled on the way, which takes seconds: no layer counts for
    more than a few times the middle one.
    """
    gaps = [
        1e-3 * before.elapsed_time(after)
        for before, after in zip(answered, published[1:], strict=False)
    ]
    if not gaps:
        return 0.0
    most = _MOST * statistics.median(gaps)
    return statistics.fmean(min(gap, most) for gap in gaps)
