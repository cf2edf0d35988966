"""The statistics of the engine that runs now, or ran last: the object behind the API."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ktd.errors import EngineNotReady, InvalidArgument
from ktd.stats.deltas import snapshot_of
from ktd.stats.fanout import Fanout

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ktd.stats.model import Sample, Snapshot
    from ktd.stats.sampler import RankSampler

SHORTEST_INTERVAL = 0.1


class StatsHub:
    """Holds the sampler of a running engine and, after its end, its last sample."""

    def __init__(self) -> None:
        self._sampler: RankSampler | None = None
        self._last: Sample | None = None
        self._fanout = Fanout(self._read)

    def attach(self, sampler: RankSampler) -> None:
        """An engine is ready and its rank files are mapped; the hub closes ``sampler``."""
        self.detach()
        self._sampler = sampler

    def detach(self) -> None:
        """The engine is gone; its last counts stay readable."""
        if self._sampler is not None:
            self._last = self._sampler.sample()
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

    def sample(self) -> Sample | None:
        """Every counter now, or of the engine that ended last; None before the first one."""
        return self._read() or self._last

    def counts(self) -> list[list[int]] | None:
        """Activations per MoE layer and expert of the engine that runs; None without one."""
        sample = self._read()
        if sample is None:
            return None
        counts: list[list[int]] = sample.pairs.sum(axis=-1).tolist()
        return counts

    def snapshot(self) -> Snapshot:
        """One full snapshot; its window is the time since the engine started.

        Raises:
            EngineNotReady: no engine has run since the daemon started.
        """
        sample = self.sample()
        if sample is None:
            raise EngineNotReady(
                "Nothing has been counted yet: the engine has not started; wait until "
                "`ktd status` says READY."
            )
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

    def _read(self) -> Sample | None:
        return self._sampler.sample() if self._sampler is not None else None
