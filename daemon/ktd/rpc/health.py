"""``grpc.health.v1``: the empty service is liveness, the others say what can be used now."""
# ruff: noqa: N802  # method names are the protocol's

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from ktd.errors import NotFound
from ktd.placement.watch import Watched
from ktd.rpc.drain import until

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Mapping

    import grpc.aio

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
LIVENESS = ""


class Health(health_pb2_grpc.HealthServicer):
    """Publishes statuses; a probe asks nobody. grpcio's own servicer never ends a watch on drain.

    Args:
        services: Names whose readiness is published; not serving until :meth:`publish`.
        stop: Ends every watch.
    """

    def __init__(self, services: tuple[str, ...], stop: asyncio.Event) -> None:
        self._stop = stop
        self._statuses = Watched({LIVENESS: _SERVING, **dict.fromkeys(services, _NOT_SERVING)})

    def publish(self, serving: Mapping[str, bool]) -> None:
        """Changes some services' readiness."""
        changes = {name: _SERVING if ready else _NOT_SERVING for name, ready in serving.items()}
        statuses = {**self._statuses.value, **changes}
        if statuses != self._statuses.value:
            self._statuses.set(statuses)

    async def Check(
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> health_pb2.HealthCheckResponse:
        """NOT_FOUND for a service that is not here, as the protocol asks."""
        del context
        status = self._statuses.value.get(request.service)
        if status is None:
            known = ", ".join(name for name in self._statuses.value if name)
            raise NotFound(f"There is no service {request.service!r}; there are {known}.")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """The status at once, then each change; SERVICE_UNKNOWN for one that is not here."""
        del context
        last: int | None = None
        async for statuses in until(self._stop, self._statuses.watch()):
            status = statuses.get(request.service, _UNKNOWN)
            if status != last:
                yield health_pb2.HealthCheckResponse(status=status)
                last = status
