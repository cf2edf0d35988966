"""The gRPC server of the daemon."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import grpc.aio
import structlog
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from ktd.errors import DoesNotFit
from ktd.rpc.engine_service import EngineService
from ktd.rpc.fit_service import FitService
from ktd.rpc.health import Health
from ktd.rpc.interceptor import ErrorInterceptor
from ktd.rpc.listener import MODE, claimed
from ktd.rpc.placement_service import PlacementService
from ktd.rpc.policy_service import PolicyService
from ktd.rpc.profile_service import ProfileService
from ktd.rpc.recording_service import RecordingService
from ktd.rpc.stats_service import StatsService
from ktd.v1 import (
    engine_pb2_grpc,
    fit_pb2_grpc,
    placement_pb2_grpc,
    policy_pb2_grpc,
    profile_pb2_grpc,
    recording_pb2_grpc,
    stats_pb2_grpc,
)

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from ktd.placement.manager import PlacementManager
    from ktd.policy.loop import PolicyLoop
    from ktd.rpc.ports import EngineControl, FitSource, StatsSource
    from ktd.stats.profiles import Profiles
    from ktd.stats.recording import Recordings

SERVICES = (
    "ktd.v1.EngineService",
    "ktd.v1.FitService",
    "ktd.v1.PlacementService",
    "ktd.v1.PolicyService",
    "ktd.v1.ProfileService",
    "ktd.v1.RecordingService",
    "ktd.v1.StatsService",
)
_HEALTH = "grpc.health.v1.Health"
_log = structlog.get_logger(__name__)


class RpcServer:
    """Serves ``ktd.v1`` on a Unix socket for the length of an ``async with`` block.

    Leaving the block ends every stream, lets calls in progress finish for ``grace`` seconds and
    removes the socket.

    Args:
        socket_path: Of the socket; mode 0660. Its folder is made if needed.
        engine: The supervised engine.
        placement: Its placement.
        stats: Its statistics.
        recordings: Of its passes.
        profiles: Statistics with a name.
        policies: What moves experts without being asked.
        fit: How many experts fit.
        grace: Seconds for calls in progress at the end.

    Raises:
        ConfigError, DoesNotFit: the socket cannot be used (on entering).
    """

    def __init__(
        self,
        socket_path: Path,
        engine: EngineControl,
        placement: PlacementManager,
        stats: StatsSource,
        *,
        recordings: Recordings,
        profiles: Profiles,
        policies: PolicyLoop,
        fit: FitSource,
        grace: float = 5.0,
    ) -> None:
        self._socket_path = socket_path
        self._engine = engine
        self._placement = placement
        self._stats = stats
        self._recordings = recordings
        self._profiles = profiles
        self._policies = policies
        self._fit = fit
        self._grace = grace
        self._stop = asyncio.Event()
        self._health = Health(SERVICES, self._stop)
        self._cleanup = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            path = stack.enter_context(claimed(self._socket_path))
            server = self._server()
            _bind(server, path)
            await server.start()
            stack.push_async_callback(server.stop, self._grace)
            follower = asyncio.create_task(self._follow_engine(), name="rpc-health")
            stack.push_async_callback(_cancelled, follower)
            self._cleanup = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.drain()
        await self._cleanup.aclose()

    def drain(self) -> None:
        """Ends every stream and reports not ready; calls are still answered."""
        self._health.publish(dict.fromkeys(SERVICES, False))
        self._stop.set()

    def _server(self) -> grpc.aio.Server:
        server = grpc.aio.server(
            interceptors=[ErrorInterceptor()],
            options=[("grpc.max_receive_message_length", 64 << 20)],
        )
        engine_pb2_grpc.add_EngineServiceServicer_to_server(
            EngineService(self._engine, self._placement, self._stop), server
        )
        placement_pb2_grpc.add_PlacementServiceServicer_to_server(
            PlacementService(self._placement, self._engine, self._stop), server
        )
        stats_pb2_grpc.add_StatsServiceServicer_to_server(
            StatsService(self._stats, self._placement, self._stop), server
        )
        recording_pb2_grpc.add_RecordingServiceServicer_to_server(
            RecordingService(self._recordings), server
        )
        profile_pb2_grpc.add_ProfileServiceServicer_to_server(
            ProfileService(self._profiles), server
        )
        policy_pb2_grpc.add_PolicyServiceServicer_to_server(
            PolicyService(self._policies, self._placement), server
        )
        fit_pb2_grpc.add_FitServiceServicer_to_server(FitService(self._fit), server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (*SERVICES, _HEALTH, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        return server

    async def _follow_engine(self) -> None:
        try:
            async for status in self._engine.watch():
                if self._stop.is_set():
                    return
                self._health.publish(dict.fromkeys(SERVICES, status.phase.serving))
        except Exception:  # noqa: BLE001  # supervises: a broken watch must not look healthy
            self._health.publish(dict.fromkeys(SERVICES, False))
            _log.exception("readiness can no longer be followed")


def _bind(server: grpc.aio.Server, path: Path) -> None:
    # Bound without rights for others from the first moment; nothing runs in between.
    before = os.umask(0o777 & ~MODE)
    try:
        server.add_insecure_port(f"unix:{path}")
    except RuntimeError as error:
        raise DoesNotFit(
            f"The socket {path} cannot be bound ({error}); choose another one with --socket."
        ) from error
    finally:
        os.umask(before)
    path.chmod(MODE)


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
