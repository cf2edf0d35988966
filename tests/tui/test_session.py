"""The session with clients that misbehave, which a real daemon does too seldom to wait for."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self

import pytest

from ktd.client import DaemonUnreachable
from ktd_tui import session as session_module
from ktd_tui.messages import Link, LinkChanged, PlacementArrived, Refused, StatusArrived
from ktd_tui.session import Session
from tests.tui import frames

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from textual.message import Message


class FakeClient:
    """Answers like a daemon whose engine is idle; ``hangs`` makes it fall silent."""

    def __init__(self) -> None:
        self.hangs = asyncio.Event()
        self.goes_on = asyncio.Event()
        self.placements = 0

    async def status(self) -> Any:
        if self.hangs.is_set():
            await self.goes_on.wait()
        value = frames.status()
        value.placement_revision = 3
        return value

    async def watch_status(self) -> AsyncIterator[Any]:
        yield await self.status()
        await asyncio.Event().wait()

    async def watch_stats(self, _interval: float) -> AsyncIterator[Any]:
        await asyncio.Event().wait()
        yield

    async def placement(self) -> Any:
        self.placements += 1
        return frames.placement()

    async def swaps(self) -> list[Any]:
        return []


class Follower:
    """Runs a session and collects what it says."""

    def __init__(self, connect: Any) -> None:
        self.heard: list[Message] = []
        self._news = asyncio.Event()
        self.session = Session(connect, self._hear, "here")

    def _hear(self, message: Message) -> None:
        self.heard.append(message)
        self._news.set()

    def links(self) -> list[Link]:
        return [message.link for message in self.heard if isinstance(message, LinkChanged)]

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(20):
            while not condition():
                self._news.clear()
                await self._news.wait()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self.session.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("_HEARTBEAT", 0.02), ("_STALE_AFTER", 0.1), ("_FIRST_PAUSE", 0.02)):
        monkeypatch.setattr(session_module, name, seconds)


def only(client: FakeClient) -> Any:
    @asynccontextmanager
    async def connect() -> AsyncIterator[FakeClient]:
        yield client

    return connect


async def test_a_daemon_that_falls_silent_is_stale_until_it_answers() -> None:
    """A hanging daemon breaks no stream: the heartbeat notices."""
    client = FakeClient()
    async with Follower(only(client)) as follower:
        await follower.until(lambda: Link.CONNECTED in follower.links())
        client.hangs.set()
        await follower.until(lambda: follower.links()[-1] is Link.STALE)
        client.hangs.clear()
        client.goes_on.set()
        await follower.until(lambda: follower.links()[-1] is Link.CONNECTED)
    assert Link.LOST not in follower.links()


async def test_the_placement_is_read_once_per_revision() -> None:
    """Every status names the revision; only a new one is worth a call."""
    client = FakeClient()
    async with Follower(only(client)) as follower:
        beats = lambda: sum(isinstance(m, StatusArrived) for m in follower.heard)  # noqa: E731
        await follower.until(lambda: beats() > 5)
        assert client.placements == 1
        assert sum(isinstance(m, PlacementArrived) for m in follower.heard) == 1


async def test_pauses_between_attempts_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that is away is not hammered; each message says when the next attempt is."""
    monkeypatch.setattr(session_module, "_LONGEST_PAUSE", 0.1)

    @asynccontextmanager
    async def connect() -> AsyncIterator[FakeClient]:
        raise DaemonUnreachable("No daemon is listening.")
        yield

    async with Follower(connect) as follower:
        await follower.until(lambda: follower.links().count(Link.LOST) >= 5)
    pauses = [m.retry_in for m in follower.heard if isinstance(m, LinkChanged)][1:]
    assert pauses[:5] == pytest.approx([0.02, 0.04, 0.08, 0.1, 0.1])
    assert follower.heard[1].detail == "No daemon is listening."


async def test_requests_without_a_daemon_are_refused() -> None:
    """Not queued, not lost in silence."""
    follower = Follower(only(FakeClient()))
    await follower.session.plan("uniform")
    await follower.session.undo()
    assert [m.what for m in follower.heard if isinstance(m, Refused)] == ["plan uniform", "undo"]


async def test_a_bug_is_not_taken_for_a_lost_daemon() -> None:
    """Only ktd's own errors mean that the connection failed."""

    @asynccontextmanager
    async def connect() -> AsyncIterator[FakeClient]:
        raise ZeroDivisionError
        yield

    with pytest.raises(ZeroDivisionError):
        await Follower(connect).session.run()
