"""``ktd.v1.EngineService``."""
# ruff: noqa: N802  # method names are the API's

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any

from ktd.rpc.convert import engine_message
from ktd.rpc.drain import until
from ktd.rpc.names import check_engine
from ktd.rpc.outliving import Outliving, drain_of
from ktd.v1 import engine_pb2, engine_pb2_grpc
from ktd.version import __version__

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator

    import grpc.aio

    from ktd.engine.status import EngineStatus
    from ktd.placement.manager import PlacementManager
    from ktd.rpc.ports import EngineControl

    Context = grpc.aio.ServicerContext[Any, Any]


class EngineService(engine_pb2_grpc.EngineServiceServicer):
    """Lifecycle and facts of the engine.

    Args:
        engine: The supervised engine.
        placement: Whose revision each status carries.
        stop: Ends every watch.
    """

    def __init__(
        self, engine: EngineControl, placement: PlacementManager, stop: asyncio.Event
    ) -> None:
        self._engine = engine
        self._placement = placement
        self._stop = stop
        self._changes = Outliving()

    async def GetStatus(
        self, request: engine_pb2.GetStatusRequest, context: Context
    ) -> engine_pb2.EngineStatus:
        """The status now."""
        del context
        check_engine(request.name)
        return self._message(self._engine.status())

    async def WatchStatus(
        self, request: engine_pb2.WatchStatusRequest, context: Context
    ) -> AsyncIterator[engine_pb2.EngineStatus]:
        """The status now, then each change."""
        del context
        check_engine(request.name)
        async for status in until(self._stop, self._engine.watch()):
            yield self._message(status)

    async def StartEngine(
        self, request: engine_pb2.StartEngineRequest, context: Context
    ) -> engine_pb2.EngineStatus:
        """Starts a stopped or failed engine."""
        del context
        check_engine(request.name)
        return self._message(await self._changes.wait(self._engine.start()))

    async def StopEngine(
        self, request: engine_pb2.StopEngineRequest, context: Context
    ) -> engine_pb2.EngineStatus:
        """Drains, then stops."""
        del context
        check_engine(request.name)
        return self._message(await self._changes.wait(self._engine.stop(_drain(request))))

    async def RestartEngine(
        self, request: engine_pb2.RestartEngineRequest, context: Context
    ) -> engine_pb2.EngineStatus:
        """Drains, stops and starts."""
        del context
        check_engine(request.name)
        return self._message(await self._changes.wait(self._engine.restart(_drain(request))))

    async def GetVersion(
        self, request: engine_pb2.GetVersionRequest, context: Context
    ) -> engine_pb2.Version:
        """The daemon's versions."""
        del request, context
        return engine_pb2.Version(
            ktd=__version__, python=platform.python_version(), api_versions=["ktd.v1"]
        )

    def _message(self, status: EngineStatus) -> engine_pb2.EngineStatus:
        return engine_message(status, self._placement.revision)


def _drain(
    request: engine_pb2.StopEngineRequest | engine_pb2.RestartEngineRequest,
) -> float | None:
    given = request.HasField("drain_timeout_seconds")
    return drain_of(request.drain_timeout_seconds if given else None)
