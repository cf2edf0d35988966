"""One sampler, many listeners: each keeps the latest sample only, and nobody waits for anybody."""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ktd.stats.model import Sample


class Subscription:
    """A slot of size one; ``dropped`` counts samples that were replaced before they were taken."""

    def __init__(self, interval: float) -> None:
        self.interval = interval
        # CLOCK_MONOTONIC seconds of the next sample.
        self.due = time.monotonic()
        self.dropped = 0
        self._slot: Sample | None = None
        self._filled = asyncio.Event()

    def offer(self, sample: Sample) -> None:
        """Puts ``sample`` into the slot, in place of one that was not taken."""
        if self._slot is not None:
            self.dropped += 1
        self._slot = sample
        self._filled.set()

    def reschedule(self, now: float) -> None:
        """Sets the next sample's time; from the plan, so that the mean rate is the asked one."""
        planned = self.due + self.interval
        self.due = planned if planned > now else now + self.interval

    async def take(self) -> Sample:
        """The latest sample, as soon as there is one that was not taken before."""
        await self._filled.wait()
        self._filled.clear()
        sample, self._slot = self._slot, None
        if sample is None:
            raise RuntimeError("a subscription has one listener")
        return sample


class Fanout:
    """Samples only while somebody listens, and only as often as the most eager listener wants.

    Args:
        sample: Reads a sample, or None when there is nothing to read now.
    """

    def __init__(self, sample: Callable[[], Sample | None]) -> None:
        self._sample = sample
        self._subscriptions: set[Subscription] = set()
        self._pump: asyncio.Task[None] | None = None

    @property
    def listeners(self) -> int:
        """How many subscriptions there are."""
        return len(self._subscriptions)

    @contextmanager
    def subscribe(self, interval: float) -> Iterator[Subscription]:
        """A subscription for the length of a block: at once, then every ``interval`` seconds."""
        subscription = Subscription(interval)
        self._subscriptions.add(subscription)
        self._restart()
        try:
            yield subscription
        finally:
            self._subscriptions.remove(subscription)
            self._restart()

    def _restart(self) -> None:
        """Lets the pump see who listens now; without listeners there is no pump."""
        if self._pump is not None:
            self._pump.cancel()
            self._pump = None
        if self._subscriptions:
            self._pump = asyncio.create_task(self._run(), name="stats-pump")

    async def _run(self) -> None:
        while True:
            now = time.monotonic()
            due = [item for item in self._subscriptions if item.due <= now]
            if due and (sample := self._sample()) is not None:
                for subscription in due:
                    subscription.offer(sample)
            for subscription in due:
                subscription.reschedule(now)
            await asyncio.sleep(max(0.0, min(item.due for item in self._subscriptions) - now))
