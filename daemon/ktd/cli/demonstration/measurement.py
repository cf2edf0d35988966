"""Counts of one stretch of work: the difference of two snapshots of the statistics."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ktd.cli.stats_json import counts_by_layer

if TYPE_CHECKING:
    from ktd.client import KtdClient, StatsSnapshot

_PAUSE = 0.25
_MOST_READS = 12


@dataclass(frozen=True, slots=True)
class Work:
    """(token, expert) pairs that were computed: per layer and expert, and per side."""

    counts: dict[int, list[int]] = field(default_factory=dict)
    gpu_pairs: int = 0
    cpu_pairs: int = 0

    @property
    def hit_rate(self) -> float:
        """Share that GPU slots computed; 0.0 if nothing was."""
        pairs = self.gpu_pairs + self.cpu_pairs
        return self.gpu_pairs / pairs if pairs else 0.0

    def __add__(self, other: Work) -> Work:
        counts = {
            layer: [
                a + b for a, b in zip(row, other.counts.get(layer, [0] * len(row)), strict=True)
            ]
            for layer, row in self.counts.items()
        } or other.counts
        return Work(counts, self.gpu_pairs + other.gpu_pairs, self.cpu_pairs + other.cpu_pairs)


def work_between(before: StatsSnapshot, after: StatsSnapshot) -> Work:
    """What was computed between two full snapshots of one engine."""
    earlier = counts_by_layer(before)
    counts = {
        layer: [
            now - then for now, then in zip(row, earlier.get(layer, [0] * len(row)), strict=True)
        ]
        for layer, row in counts_by_layer(after).items()
    }
    return Work(
        counts,
        after.totals.gpu_pairs - before.totals.gpu_pairs,
        after.totals.cpu_pairs - before.totals.cpu_pairs,
    )


async def settled_stats(client: KtdClient) -> StatsSnapshot:
    """A snapshot taken once the counters stand still: they are sampled, and lag the last token.

    An engine that other clients keep busy never stands still; then the newest one has to do.
    """
    stats = await client.stats()
    for _ in range(_MOST_READS):
        await asyncio.sleep(_PAUSE)
        newer = await client.stats()
        if newer.totals == stats.totals:
            return newer
        stats = newer
    return stats
