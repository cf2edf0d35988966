"""The client's calls about slots: how many fit, and starting again with others; and etags."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from ktd.client.calls import NAME, Calls
from ktd.errors import PlacementStale
from ktd.v1 import fit_pb2, placement_pb2
from ktd.v1.fit_pb2_grpc import FitServiceStub

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import grpc.aio

    from ktd.v1.placement_pb2_grpc import PlacementServiceAsyncStub

T = TypeVar("T")
_PLACEMENT_NAME = f"{NAME}/placement"


class SlotCalls(Calls):
    """A part of :class:`~ktd.client.client.KtdClient`."""

    _metadata: tuple[tuple[str, str], ...]
    _placement: PlacementServiceAsyncStub

    def _connect_fit(self, channel: grpc.aio.Channel) -> None:
        self._fit = FitServiceStub(channel)

    async def fit(self) -> fit_pb2.FitPlacementResponse:
        """The largest budget that fits, by the memory that is free now."""
        request = fit_pb2.FitPlacementRequest(name=NAME)
        return await self._answer(self._fit.FitPlacement(request, timeout=self._timeout))

    async def restart_with_placement(
        self,
        *,
        plan: str | None = None,
        strategy: str | None = None,
        etag: str | None = None,
        drain: float | None = None,
        validate_only: bool = False,
    ) -> placement_pb2.RestartWithPlacementResponse:
        """Drains and starts the engine with the slots that a strategy would like.

        Args:
            plan: Name of a plan that a strategy made; or the next one.
            strategy: Name of a strategy.
            etag: None: that of the placement now is fetched first.
            drain: Seconds for requests in flight; None: the daemon's setting.
            validate_only: Check everything, change nothing.
        """
        request = placement_pb2.RestartWithPlacementRequest(
            name=_PLACEMENT_NAME, drain_timeout_seconds=drain, validate_only=validate_only
        )
        if plan is not None:
            request.plan = plan
        elif strategy is not None:
            request.strategy.strategy = strategy

        async def ask(etag: str) -> placement_pb2.RestartWithPlacementResponse:
            request.etag = etag
            # Not cut off: draining takes as long as it takes.
            call = self._placement.RestartWithPlacement(request, metadata=self._metadata)
            return await self._answer(call)

        return await self._with_etag(ask, "" if plan is not None and etag is None else etag)

    async def _with_etag(self, ask: Callable[[str], Awaitable[T]], etag: str | None) -> T:
        """Asks with ``etag``, or with that of the placement now, and then once more if need be.

        A policy may move experts between reading and asking; a call of an operator keeps it from
        that for a moment, so the second attempt is not overtaken again.
        """
        if etag is not None:
            return await ask(etag)
        try:
            return await ask(await self._etag_now())
        except PlacementStale:
            return await ask(await self._etag_now())

    async def _etag_now(self) -> str:
        request = placement_pb2.GetPlacementRequest(name=_PLACEMENT_NAME)
        call = self._placement.GetPlacement(request, timeout=self._timeout)
        return (await self._answer(call)).etag
