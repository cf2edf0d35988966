"""What health checks and metrics see."""

from __future__ import annotations

from ktd.app.observe import Observer
from ktd.http.gate import Gate
from ktd.http.metrics import Metrics
from ktd.stats.hub import StatsHub
from tests.placement.conftest import SHAPE, bench_of
from tests.rpc.fake_engine import ready_status

MORE_THAN_ARE_KEPT = 60


class ReadyEngine:
    """The part of a supervisor that is asked."""

    def status(self):
        return ready_status(SHAPE, "e1")

    def complaint(self):
        return ""


def swaps_of(metrics: Metrics) -> float:
    line = next(
        line
        for line in metrics.text().decode().splitlines()
        if line.startswith('ktd_expert_swaps_total{result="succeeded"}')
    )
    return float(line.split()[-1])


async def test_swaps_are_counted_beyond_those_that_are_kept():
    """A counter that falls looks like a restart to who reads it."""
    async with bench_of() as bench:
        metrics = Metrics(Observer(ReadyEngine(), bench.manager, StatsHub(), Gate()))
        for turn in range(MORE_THAN_ARE_KEPT):
            await bench.applied({1: (0, turn % 2 + 2)})
        assert len(bench.manager.swaps.all()) < MORE_THAN_ARE_KEPT
        assert swaps_of(metrics) == MORE_THAN_ARE_KEPT
