"""The one owner of the connection: reads the daemon's streams and tells the app in messages.

While the daemon is away the session tries again with growing pauses. It calls `GetStatus` as a
heartbeat, because a stream of a daemon that hangs is merely silent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from textual.message import Message

from ktd.client import EngineStatus, KtdClient, KtdError, Plan, Swap
from ktd_tui.activity import ActivityBoard
from ktd_tui.messages import (
    ActivityArrived,
    Link,
    LinkChanged,
    PlacementArrived,
    PlanArrived,
    Refused,
    StatusArrived,
    SwapArrived,
)
from ktd_tui.swaps import is_running

INTERVAL = 0.5  # seconds between samples, so that the screen changes at most twice a second
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 8.0
_HEARTBEAT = 2.0
_STALE_AFTER = 4.0

Connect = Callable[[], AbstractAsyncContextManager[KtdClient]]


class Session:
    """Follows one daemon.

    Args:
        connect: Opens a client.
        post: Takes each message; never blocks.
        where: What to call the daemon, for example its socket.
    """

    def __init__(self, connect: Connect, post: Callable[[Message], object], where: str) -> None:
        self._connect = connect
        self._post = post
        self._where = where
        self._client: KtdClient | None = None
        self._pause = _FIRST_PAUSE
        self._etag = ""
        self._shown = ("", -1)  # engine id and revision of the placement that was posted
        self._watched = ""  # name of the newest swap that is or was followed

    async def run(self) -> None:
        """Connects, follows and reconnects until it is cancelled."""
        self._post(LinkChanged(Link.CONNECTING, self._where))
        while True:
            reason = await self._follow()
            self._post(LinkChanged(Link.LOST, reason, self._pause))
            await asyncio.sleep(self._pause)
            self._pause = min(_LONGEST_PAUSE, 2 * self._pause)

    async def plan(self, strategy: str) -> None:
        """Asks what ``strategy`` would move; answers with PlanArrived or Refused."""
        try:
            plan = await self._connected().plan(strategy=strategy)
        except KtdError as error:
            self._post(Refused(f"plan {strategy}", str(error)))
        else:
            self._post(PlanArrived(strategy, plan))

    async def apply(self, plan: Plan) -> None:
        """Applies a plan and follows the swap."""
        try:
            client = self._connected()
            await self._watch_swap(client, await client.apply(plan=plan.name))
        except KtdError as error:
            self._post(Refused("apply", str(error)))

    async def undo(self) -> None:
        """Goes back to the placement before the newest one and follows the swap."""
        try:
            client = self._connected()
            await self._watch_swap(client, await client.undo(etag=self._etag))
        except KtdError as error:
            self._post(Refused("undo", str(error)))

    def _connected(self) -> KtdClient:
        if self._client is None:
            raise KtdError("the daemon is not connected")
        return self._client

    async def _follow(self) -> str:
        """Follows until the connection fails; returns why, in one sentence."""
        reason = ""
        try:
            async with self._connect() as client:
                self._take_status(await client.status())
                self._client = client
                self._pause = _FIRST_PAUSE
                self._post(LinkChanged(Link.CONNECTED, self._where))
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._read_status(client))
                    group.create_task(self._read_stats(client))
                    group.create_task(self._beat(client))
        except* KtdError as errors:
            reason = str(_first(errors))
        finally:
            self._client = None
        return reason

    async def _read_status(self, client: KtdClient) -> None:
        async for status in client.watch_status():
            self._take_status(status)
            await self._read_placement(client, status.engine_id, status.placement_revision)
        raise KtdError("the daemon is shutting down")

    async def _read_stats(self, client: KtdClient) -> None:
        board = ActivityBoard()
        async for snapshot in client.watch_stats(INTERVAL):
            activity = board.update(snapshot)
            self._post(ActivityArrived(activity))
            await self._read_placement(client, activity.engine_id, activity.placement_revision)
        raise KtdError("the daemon is shutting down")

    async def _beat(self, client: KtdClient) -> None:
        """Notices a daemon that hangs, and swaps that others started."""
        stale = False
        while True:
            await asyncio.sleep(_HEARTBEAT)
            try:
                async with asyncio.timeout(_STALE_AFTER):
                    self._take_status(await client.status())
                    swaps = await client.swaps()
            except TimeoutError:
                stale = True
                detail = f"no answer for {_STALE_AFTER:.0f} s; what is shown is old"
                self._post(LinkChanged(Link.STALE, detail))
                continue
            if stale:
                stale = False
                self._post(LinkChanged(Link.CONNECTED, self._where))
            if swaps and is_running(swaps[0]) and swaps[0].name != self._watched:
                await self._watch_swap(client, swaps[0])

    async def _read_placement(self, client: KtdClient, engine_id: str, revision: int) -> None:
        if (engine_id, revision) == self._shown:
            return
        try:
            placement = await client.placement()
        except KtdError:
            return  # An engine that is starting has none; the next message asks again.
        self._shown = (engine_id, revision)
        self._etag = placement.etag
        self._post(PlacementArrived(placement))

    async def _watch_swap(self, client: KtdClient, swap: Swap) -> None:
        self._watched = swap.name
        self._post(SwapArrived(swap))
        async for state in client.watch_swap(swap.name):
            self._post(SwapArrived(state))

    def _take_status(self, status: EngineStatus) -> None:
        self._post(StatusArrived(status))


def _first(errors: BaseExceptionGroup[KtdError]) -> BaseException:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
