"""``ktd.v1.StatsService``."""
# ruff: noqa: N802  # method names are the API's

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ktd.rpc.convert_stats import snapshot_message
from ktd.rpc.drain import until
from ktd.rpc.names import check_engine
from ktd.v1 import stats_pb2, stats_pb2_grpc

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator

    import grpc.aio

    from ktd.placement.manager import PlacementManager
    from ktd.rpc.ports import StatsSource

    Context = grpc.aio.ServicerContext[Any, Any]

_INTERVAL = 1.0


class StatsService(stats_pb2_grpc.StatsServiceServicer):
    """Statistics, at once or as a stream.

    Args:
        stats: Where they come from.
        placement: Whose revision each snapshot carries.
        stop: Ends every watch.
    """

    def __init__(
        self, stats: StatsSource, placement: PlacementManager, stop: asyncio.Event
    ) -> None:
        self._stats = stats
        self._placement = placement
        self._stop = stop

    async def GetStats(
        self, request: stats_pb2.GetStatsRequest, context: Context
    ) -> stats_pb2.StatsSnapshot:
        """One full snapshot."""
        del context
        check_engine(request.name)
        window = request.window.ToNanoseconds() / 1e9 if request.HasField("window") else None
        snapshot = self._stats.snapshot(window)
        rates = self._stats.rates() if request.with_rates else None
        return snapshot_message(snapshot, self._placement.revision, rates)

    async def WatchStats(
        self, request: stats_pb2.WatchStatsRequest, context: Context
    ) -> AsyncIterator[stats_pb2.StatsSnapshot]:
        """A full snapshot, then deltas."""
        del context
        check_engine(request.name)
        interval = _INTERVAL
        if request.HasField("min_interval"):
            interval = request.min_interval.ToNanoseconds() / 1e9
        async for snapshot in until(self._stop, self._stats.watch(interval)):
            yield snapshot_message(snapshot, self._placement.revision)
