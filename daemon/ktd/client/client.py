"""One connection to a daemon; answers are the API's own protobuf messages."""

from __future__ import annotations

import os
import uuid
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import grpc.aio

from ktd.client.calls import NAME
from ktd.client.errors import DaemonUnreachable, error_of_status
from ktd.client.placements import SlotCalls
from ktd.client.policies import PolicyCalls
from ktd.client.socket import default_socket
from ktd.client.statistics import StatisticsCalls
from ktd.errors import KtdError
from ktd.v1 import engine_pb2, placement_pb2
from ktd.v1.engine_pb2_grpc import EngineServiceStub
from ktd.v1.placement_pb2_grpc import PlacementServiceStub

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        Callable,
        Iterable,
        Mapping,
    )
    from types import TracebackType
    from typing import Self

T = TypeVar("T")

PLACEMENT_NAME = f"{NAME}/placement"
_TERMINAL = frozenset(
    (
        placement_pb2.SWAP_STATE_SUCCEEDED,
        placement_pb2.SWAP_STATE_FAILED,
        placement_pb2.SWAP_STATE_CANCELLED,
    )
)
_LONGEST_SOCKET_PATH = 107


class KtdClient(StatisticsCalls, PolicyCalls, SlotCalls):
    """Calls a daemon over its Unix socket; an async context manager.

    Every method raises ``KtdError``: with the daemon's own class, code and reason where it refused,
    ``DaemonUnreachable`` where there is none. Unary calls that the daemon answers at once have a
    deadline, so that no command hangs.

    Args:
        socket: Path of the socket; None: see :func:`default_socket`.
        timeout: Deadline of calls that the daemon answers at once, in seconds.
    """

    def __init__(self, socket: str | Path | None = None, *, timeout: float = 10.0) -> None:
        path = Path(socket) if socket is not None else default_socket()
        self.socket = str(path.absolute())
        self._timeout = timeout
        if len(os.fsencode(self.socket)) > _LONGEST_SOCKET_PATH:
            raise DaemonUnreachable(
                f"The socket path {self.socket} is longer than the {_LONGEST_SOCKET_PATH} bytes "
                "that Unix sockets allow; use a shorter one."
            )
        self._channel: grpc.aio.Channel | None = None

    async def __aenter__(self) -> Self:
        options = [
            # A daemon that was just restarted is found again within a second.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.enable_http_proxy", 0),
            # A full plan of a large model is larger than the default of 4 MiB.
            ("grpc.max_receive_message_length", 64 << 20),
        ]
        channel = grpc.aio.insecure_channel(f"unix:{self.socket}", options=options)
        self._channel = channel
        self._engine = EngineServiceStub(channel)
        self._placement = PlacementServiceStub(channel)
        self._connect_statistics(channel)
        self._connect_policies(channel)
        self._connect_fit(channel)
        self._metadata = (("ktd-actor", f"uid={os.getuid()} pid={os.getpid()}"),)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    # EngineService

    async def status(self) -> engine_pb2.EngineStatus:
        """The engine's status now."""
        request = engine_pb2.GetStatusRequest(name=NAME)
        return await self._answer(self._engine.GetStatus(request, timeout=self._timeout))

    def watch_status(self) -> AsyncGenerator[engine_pb2.EngineStatus, None]:
        """The status at once, then each change, until the daemon stops or the caller does."""
        return self._stream(self._engine.WatchStatus(engine_pb2.WatchStatusRequest(name=NAME)))

    async def version(self) -> engine_pb2.Version:
        """Versions of the daemon and of its API."""
        request = engine_pb2.GetVersionRequest()
        return await self._answer(self._engine.GetVersion(request, timeout=self._timeout))

    async def start(self) -> engine_pb2.EngineStatus:
        """Starts a stopped or failed engine; returns at once."""
        request = engine_pb2.StartEngineRequest(name=NAME)
        call = self._engine.StartEngine(request, timeout=self._timeout, metadata=self._metadata)
        return await self._answer(call)

    async def stop(self, drain: float | None = None) -> engine_pb2.EngineStatus:
        """Drains for up to ``drain`` seconds (None: the daemon's setting), then stops."""
        request = engine_pb2.StopEngineRequest(name=NAME, drain_timeout_seconds=drain)
        return await self._answer(self._engine.StopEngine(request, metadata=self._metadata))

    async def restart(self, drain: float | None = None) -> engine_pb2.EngineStatus:
        """Stops the engine as :meth:`stop` does, and starts it with the same placement."""
        request = engine_pb2.RestartEngineRequest(name=NAME, drain_timeout_seconds=drain)
        return await self._answer(self._engine.RestartEngine(request, metadata=self._metadata))

    # PlacementService

    async def placement(self) -> placement_pb2.Placement:
        """The committed placement."""
        request = placement_pb2.GetPlacementRequest(name=PLACEMENT_NAME)
        return await self._answer(self._placement.GetPlacement(request, timeout=self._timeout))

    async def plan(
        self,
        *,
        strategy: str | None = None,
        layers: Mapping[int, Iterable[int]] | None = None,
        partial: bool = False,
    ) -> placement_pb2.Plan:
        """What a strategy, or explicit experts per model layer, would move."""
        request = placement_pb2.PlanPlacementRequest(name=PLACEMENT_NAME)
        _set_goal(request, strategy, layers, partial=partial)
        return await self._answer(self._placement.PlanPlacement(request, timeout=self._timeout))

    async def apply(
        self,
        *,
        plan: str | None = None,
        strategy: str | None = None,
        layers: Mapping[int, Iterable[int]] | None = None,
        partial: bool = False,
        etag: str | None = None,
        validate_only: bool = False,
        request_id: str | None = None,
    ) -> placement_pb2.Swap:
        """Starts a swap and returns at once.

        Args:
            plan: Name of a plan, which brings its own etag; or one of the next two.
            strategy: Name of a strategy.
            layers: Experts per model layer.
            partial: Layers that are not in ``layers`` stay as they are.
            etag: None: that of the placement now is fetched first.
            validate_only: Check everything, change nothing.
            request_id: None: a new one.
        """
        request = placement_pb2.ApplyPlacementRequest(
            name=PLACEMENT_NAME,
            validate_only=validate_only,
            request_id=request_id or uuid.uuid4().hex,
        )
        if plan is not None:
            request.plan = plan
        else:
            _set_goal(request, strategy, layers, partial=partial)

        async def ask(etag: str) -> placement_pb2.Swap:
            request.etag = etag
            call = self._placement.ApplyPlacement(
                request, timeout=self._timeout, metadata=self._metadata
            )
            return await self._answer(call)

        return await self._with_etag(ask, "" if plan is not None and etag is None else etag)

    async def apply_and_wait(
        self,
        *,
        plan: str | None = None,
        strategy: str | None = None,
        layers: Mapping[int, Iterable[int]] | None = None,
        partial: bool = False,
        etag: str | None = None,
        on_progress: Callable[[placement_pb2.Swap], None] | None = None,
    ) -> placement_pb2.Swap:
        """As :meth:`apply`, and returns the swap when it is committed.

        Raises:
            KtdError: also if the swap failed or was cancelled.
        """
        swap = await self.apply(
            plan=plan, strategy=strategy, layers=layers, partial=partial, etag=etag
        )
        return await self.wait_for_swap(swap.name, on_progress=on_progress)

    async def undo(
        self, *, etag: str | None = None, request_id: str | None = None
    ) -> placement_pb2.Swap:
        """Starts a swap back to before the newest change; fetches the etag if None is given."""
        request = placement_pb2.UndoPlacementRequest(
            name=PLACEMENT_NAME, request_id=request_id or uuid.uuid4().hex
        )

        async def ask(etag: str) -> placement_pb2.Swap:
            request.etag = etag
            call = self._placement.UndoPlacement(
                request, timeout=self._timeout, metadata=self._metadata
            )
            return await self._answer(call)

        return await self._with_etag(ask, etag)

    async def history(self, page_size: int = 0) -> list[placement_pb2.HistoryEntry]:
        """Applied placements, newest first; ``page_size`` 0: all that are kept."""
        entries: list[placement_pb2.HistoryEntry] = []
        token = ""
        while True:
            request = placement_pb2.ListPlacementsRequest(
                parent=NAME, page_size=page_size, page_token=token
            )
            call = self._placement.ListPlacements(request, timeout=self._timeout)
            page = await self._answer(call)
            entries.extend(page.entries)
            token = page.next_page_token
            if not token or page_size:
                return entries

    async def swap(self, name: str) -> placement_pb2.Swap:
        """One swap now."""
        request = placement_pb2.GetSwapRequest(name=name)
        return await self._answer(self._placement.GetSwap(request, timeout=self._timeout))

    async def swaps(self) -> list[placement_pb2.Swap]:
        """The last swaps, newest first."""
        request = placement_pb2.ListSwapsRequest(parent=NAME)
        answer = await self._answer(self._placement.ListSwaps(request, timeout=self._timeout))
        return list(answer.swaps)

    async def cancel_swap(self, name: str) -> placement_pb2.Swap:
        """Asks for a swap to be taken back."""
        request = placement_pb2.CancelSwapRequest(name=name)
        call = self._placement.CancelSwap(request, timeout=self._timeout, metadata=self._metadata)
        return await self._answer(call)

    def watch_swap(self, name: str) -> AsyncGenerator[placement_pb2.Swap, None]:
        """The swap at once, then its changes; ends when it is terminal."""
        return self._stream(self._placement.WatchSwap(placement_pb2.WatchSwapRequest(name=name)))

    async def wait_for_swap(
        self, name: str, *, on_progress: Callable[[placement_pb2.Swap], None] | None = None
    ) -> placement_pb2.Swap:
        """Returns the swap when it has succeeded.

        Raises:
            KtdError: it failed or was cancelled, or the daemon went away meanwhile.
        """
        async with aclosing(self.watch_swap(name)) as changes:
            async for swap in changes:
                if on_progress is not None:
                    on_progress(swap)
                if swap.state in _TERMINAL:
                    return _succeeded(swap)
        # The daemon ends its streams when it stops.
        raise DaemonUnreachable(
            f"The daemon on {self.socket} stopped before swap {name} had ended; the placement "
            "that was committed last is restored at its next start."
        )


def _set_goal(
    request: placement_pb2.PlanPlacementRequest | placement_pb2.ApplyPlacementRequest,
    strategy: str | None,
    layers: Mapping[int, Iterable[int]] | None,
    *,
    partial: bool,
) -> None:
    if (strategy is None) == (layers is None):
        raise ValueError("give either a strategy or layers")
    if strategy is not None:
        request.strategy.strategy = strategy
    if layers is not None:
        request.target.partial = partial
        request.target.layers.extend(
            placement_pb2.LayerTarget(layer=layer, gpu_experts=experts)
            for layer, experts in layers.items()
        )


def _succeeded(swap: placement_pb2.Swap) -> placement_pb2.Swap:
    if swap.state == placement_pb2.SWAP_STATE_SUCCEEDED:
        return swap
    if swap.state == placement_pb2.SWAP_STATE_CANCELLED:
        error = KtdError("The swap was cancelled; the placement is what it was before.")
        error.code, error.reason = "CANCELLED", "SWAP_CANCELLED"
        raise error
    raise error_of_status(swap.error) or KtdError(swap.error.message)
