"""``ktd.v1.PlacementService``."""
# ruff: noqa: N802  # method names are the API's

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from ktd.errors import InvalidArgument
from ktd.rpc.actor import actor_of
from ktd.rpc.convert import (
    goal_of,
    history_messages,
    layer_messages,
    placement_message,
    plan_message,
    restart_goal_of,
    swap_message,
)
from ktd.rpc.drain import until
from ktd.rpc.names import check_engine, check_placement, plan_id, swap_id
from ktd.rpc.outliving import Outliving, drain_of
from ktd.v1 import placement_pb2, placement_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import grpc.aio

    from ktd.placement.manager import PlacementManager
    from ktd.placement.swap import Swap
    from ktd.rpc.ports import EngineControl

    Context = grpc.aio.ServicerContext[Any, Any]

# Ten thousand moves take 20 ms to put into an answer; a swap that has begun copies meanwhile.
_BEGIN_SECONDS = 0.002
_PAGE = 50
_LARGEST_PAGE = 1000


class PlacementService(placement_pb2_grpc.PlacementServiceServicer):
    """Reads, plans and changes the placement.

    Args:
        placement: The engine's placement.
        engine: Is restarted where slots have to change.
        stop: Ends every watch.
    """

    def __init__(
        self, placement: PlacementManager, engine: EngineControl, stop: asyncio.Event
    ) -> None:
        self._placement = placement
        self._engine = engine
        self._changes = Outliving()
        self._stop = stop

    async def GetPlacement(
        self, request: placement_pb2.GetPlacementRequest, context: Context
    ) -> placement_pb2.Placement:
        """The committed placement."""
        del context
        check_placement(request.name)
        return placement_message(self._placement.placement())

    async def PlanPlacement(
        self, request: placement_pb2.PlanPlacementRequest, context: Context
    ) -> placement_pb2.Plan:
        """What a goal would move."""
        del context
        check_placement(request.name)
        await self._placement.operators_turn()
        return plan_message(self._placement.plan(goal_of(request)))

    async def ApplyPlacement(
        self, request: placement_pb2.ApplyPlacementRequest, context: Context
    ) -> placement_pb2.Swap:
        """Starts a swap."""
        check_placement(request.name)
        await self._placement.operators_turn()
        if request.HasField("plan"):
            swap = self._placement.apply_plan(
                plan_id(request.plan),
                etag=request.etag,
                validate_only=request.validate_only,
                request_id=request.request_id,
                actor=actor_of(context),
            )
        else:
            swap = self._placement.apply(
                goal_of(request),
                etag=request.etag,
                validate_only=request.validate_only,
                request_id=request.request_id,
                actor=actor_of(context),
            )
        return await _begun(swap)

    async def UndoPlacement(
        self, request: placement_pb2.UndoPlacementRequest, context: Context
    ) -> placement_pb2.Swap:
        """Starts a swap back."""
        check_placement(request.name)
        await self._placement.operators_turn()
        swap = self._placement.undo(
            etag=request.etag, request_id=request.request_id, actor=actor_of(context)
        )
        return await _begun(swap)

    async def RestartWithPlacement(
        self, request: placement_pb2.RestartWithPlacementRequest, context: Context
    ) -> placement_pb2.RestartWithPlacementResponse:
        """Drains, and starts the engine with the slots that a strategy would like."""
        check_placement(request.name)
        given = request.HasField("drain_timeout_seconds")
        drain = drain_of(request.drain_timeout_seconds if given else None)
        await self._placement.operators_turn()
        restarts = self._placement.restarts
        by_plan = request.HasField("plan")
        start = restarts.check(
            None if by_plan else restart_goal_of(request),
            plan_id(request.plan) if by_plan else "",
            etag=request.etag,
            actor=actor_of(context),
        )
        notes: tuple[str, ...] = ()
        if not request.validate_only:
            notes = restarts.plan(start)
            await self._changes.wait(self._engine.restart(drain))
        return placement_pb2.RestartWithPlacementResponse(
            layers=layer_messages(start.shape, start.experts), notes=(*start.notes, *notes)
        )

    async def ListPlacements(
        self, request: placement_pb2.ListPlacementsRequest, context: Context
    ) -> placement_pb2.ListPlacementsResponse:
        """A page of the history; a token is the revision that the page begins with."""
        del context
        check_engine(request.parent)
        if request.page_size < 0:
            raise InvalidArgument(f"page_size is {request.page_size}, but must be 0 or more.")
        entries = history_messages(self._placement.history)
        if request.page_token:
            first = _revision(request.page_token)
            entries = [entry for entry in entries if entry.revision <= first]
        size = min(request.page_size or _PAGE, _LARGEST_PAGE)
        rest = entries[size:]
        return placement_pb2.ListPlacementsResponse(
            entries=entries[:size], next_page_token=str(rest[0].revision) if rest else ""
        )

    async def GetSwap(
        self, request: placement_pb2.GetSwapRequest, context: Context
    ) -> placement_pb2.Swap:
        """One swap now."""
        del context
        return swap_message(self._placement.swaps.get(swap_id(request.name)))

    async def ListSwaps(
        self, request: placement_pb2.ListSwapsRequest, context: Context
    ) -> placement_pb2.ListSwapsResponse:
        """The last swaps, newest first."""
        del context
        check_engine(request.parent)
        swaps = self._placement.swaps.all()
        return placement_pb2.ListSwapsResponse(swaps=map(swap_message, swaps))

    async def CancelSwap(
        self, request: placement_pb2.CancelSwapRequest, context: Context
    ) -> placement_pb2.Swap:
        """Asks for a swap to be taken back."""
        del context
        return swap_message(self._placement.swaps.cancel(swap_id(request.name)))

    async def WatchSwap(
        self, request: placement_pb2.WatchSwapRequest, context: Context
    ) -> AsyncIterator[placement_pb2.Swap]:
        """A swap until it is terminal; its moves come with the first and the last message."""
        del context
        changes = self._placement.swaps.watch(swap_id(request.name))
        first = True
        async for swap in until(self._stop, changes):
            yield swap_message(swap, with_moves=first or swap.state.terminal)
            first = False


async def _begun(swap: Swap) -> placement_pb2.Swap:
    await asyncio.sleep(_BEGIN_SECONDS)
    return swap_message(swap)


def _revision(token: str) -> int:
    try:
        return int(token)
    except ValueError:
        raise InvalidArgument(
            f"{token!r} is not a page token; send the one that the last page came with."
        ) from None
