"""The statistics of the engine that runs now, or ran last: the object behind the API."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import numpy as np

from ktd.errors import EngineNotReady, InvalidArgument
from ktd.stats.deltas import snapshot_of, snapshot_of_window
from ktd.stats.fanout import Fanout
from ktd.stats.history import LONGEST_WINDOW, TICK, SampleHistory
from ktd.stats.rates import DecayedRates

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from numpy.typing import NDArray

    from ktd.stats.model import Sample, Snapshot
    from ktd.stats.rates import Rates
    from ktd.stats.sampler import RankSampler

SHORTEST_INTERVAL = 0.1
_MOST_PRIOR_PAIRS = 200_000


class StatsHub:
    """Holds the sampler of a running engine and, after its end, its last sample.

    While an engine runs it looks once a second whether anything was counted, for the rates and for
    windows; an engine that does nothing costs it the reading of two numbers. Attach and detach
    belong in a running event loop.
    """

    def __init__(self) -> None:
        self._prior: NDArray[np.int64] | None = None
        self._baseline: NDArray[np.int64] | int = 0
        self._history = SampleHistory()
        self._rates = DecayedRates()
        self._keeper: asyncio.Task[None] | None = None
        self._sampler: RankSampler | None = None
        self._last: Sample | None = None
        self._fanout = Fanout(self._read)

    def attach(self, sampler: RankSampler) -> None:
        """An engine is ready and its rank files are mapped; the hub closes ``sampler``."""
        self.detach()
        self._sampler = sampler
        self._keeper = asyncio.create_task(self._keep(sampler), name="stats-keeper")

    def detach(self) -> None:
        """The engine is gone; its last counts stay readable."""
        if self._keeper is not None:
            self._keeper.cancel()
            self._keeper = None
        if self._sampler is not None:
            self._last = self._sampler.sample()
            self._rates.update(self._last)
            self._prior = limited(self._known_with(self._last))
            self._baseline = 0
            self._sampler.close()
            self._sampler = None

    @property
    def ready(self) -> bool:
        """Whether an engine is being counted."""
        return self._sampler is not None

    @property
    def listeners(self) -> int:
        """How many streams are open."""
        return self._fanout.listeners

    def steps(self) -> int:
        """Forward passes of the engine that runs, cheaply; 0 without one."""
        return self._sampler.steps() if self._sampler is not None else 0

    def move_call_seconds(self) -> float:
        """What moving experts took of the scheduler that runs, cheaply; 0 without one."""
        return self._sampler.move_call_seconds() if self._sampler is not None else 0.0

    def sample(self) -> Sample | None:
        """Every counter now, or of the engine that ended last; None before the first one."""
        return self._read() or self._last

    def counts(self) -> list[list[int]] | None:
        """Activations per MoE layer and expert that strategies use; None without an engine.

        What the engine that runs has counted, on top of what is known from before; see ``use``.
        """
        if self._sampler is None or (known := self.known()) is None:
            return None
        counts: list[list[int]] = known.sum(axis=0).tolist()
        return counts

    def known(self) -> NDArray[np.int64] | None:
        """The same ``[kind, layer, expert]``, prefill and decode apart, also without an engine."""
        sample = self._read()
        return self._prior if sample is None else self._known_with(sample)

    def total(self) -> int:
        """Pairs counted by the engine that runs or ran last; tells whether there is news."""
        sample = self.sample()
        return 0 if sample is None else int(sample.counts.sum())

    def use(self, counts: NDArray[np.int64]) -> None:
        """From now on strategies use ``counts`` and what is counted after this call.

        Args:
            counts: ``[kind, layer, expert]``; weighs as 200,000 pairs a layer at most, so that the
                traffic of now soon counts for more.
        """
        sample = self._read()
        self._prior = limited(counts)
        self._baseline = 0 if sample is None else sample.counts.sum(axis=-1)

    def rates(self) -> Rates | None:
        """Decayed rates as of now, over all engines since the daemon's start; None before one."""
        if (sample := self._read()) is not None:
            self._rates.update(sample)
        return self._rates.at(time.time())

    def snapshot(self, window: float | None = None) -> Snapshot:
        """One full snapshot, with the time since the engine's start as its window.

        Args:
            window: Seconds, at most 300: counts and window are of the last so many seconds, or a
                little more, instead.

        Raises:
            EngineNotReady: no engine has run since the daemon started.
            InvalidArgument: the window is too long, or not above 0.
        """
        if window is not None and not 0 < window <= LONGEST_WINDOW:
            raise InvalidArgument(
                f"The window is {window:g} s, but must be above 0 and at most {LONGEST_WINDOW:g} s."
            )
        sample = self.sample()
        if sample is None:
            raise EngineNotReady(
                "Nothing has been counted yet: the engine has not started; wait until "
                "`ktd status` says READY."
            )
        if window is not None:
            return snapshot_of_window(sample, self._history.before(sample, window))
        return snapshot_of(sample)

    async def watch(self, min_interval: float) -> AsyncIterator[Snapshot]:
        """A full snapshot as soon as an engine runs, then what changed, again full after a restart.

        Args:
            min_interval: Seconds between two snapshots, at least 0.1.

        Raises:
            InvalidArgument: ``min_interval`` is too short.
        """
        if not min_interval >= SHORTEST_INTERVAL:
            raise InvalidArgument(
                f"min_interval is {min_interval:g} s, but must be {SHORTEST_INTERVAL:g} s or more."
            )
        last: Sample | None = None
        sequence = 0
        with self._fanout.subscribe(min_interval) as subscription:
            while True:
                sample = await subscription.take()
                sequence += 1
                yield snapshot_of(sample, last, sequence=sequence, dropped=subscription.dropped)
                last = sample

    def _known_with(self, sample: Sample) -> NDArray[np.int64]:
        counted: NDArray[np.int64] = sample.counts.sum(axis=-1) - self._baseline
        if self._prior is None or self._prior.shape != counted.shape:
            return counted
        return self._prior + counted

    async def _keep(self, sampler: RankSampler) -> None:
        steps, kept = -1, True
        while True:
            if (now := sampler.steps()) != steps:
                steps, kept = now, False
                self._take(sampler.sample())
            elif not kept:
                kept = True
                self._history.add(sampler.sample(), last=True)
            await asyncio.sleep(TICK)

    def _take(self, sample: Sample) -> None:
        self._rates.update(sample)
        self._history.add(sample)

    def _read(self) -> Sample | None:
        return self._sampler.sample() if self._sampler is not None else None


def limited(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Counts ``[kind, layer, expert]`` scaled down to 200,000 pairs a layer, where there are more.

    An expert that was chosen at all stays so.
    """
    most = int(counts.sum(axis=(0, 2)).max(initial=0))
    if most <= _MOST_PRIOR_PAIRS:
        return counts
    scaled: NDArray[np.int64] = np.ceil(counts * (_MOST_PRIOR_PAIRS / most)).astype(np.int64)
    return scaled
