"""The loop goes on while a policy thinks in a thread, and what comes too late is not done."""

from __future__ import annotations

import asyncio
import contextlib
import threading

from ktd.placement.goals import ExplicitGoal
from ktd.policy.adaptive import Adaptive
from ktd.policy.options import PolicyOptions
from ktd.policy.session import ROLLED_BACK
from tests.policy.test_loop import ADAPTIVE, HOT, START, rig


@contextlib.asynccontextmanager
async def thinking(here, monkeypatch, *, then=None):
    """Inside, the policy has begun to decide and the event loop has gone on; it ends behind."""
    begun, end, decide = threading.Event(), threading.Event(), Adaptive.decide

    def slowly(*args):
        begun.set()
        assert end.wait(20)
        return decide(*args) if then is None else then()

    monkeypatch.setattr(Adaptive, "decide", slowly)
    task = asyncio.create_task(here.loop.run())
    try:
        for _ in range(500):
            here.engine.decodes(100)
            await asyncio.sleep(0.02)
            if begun.is_set():
                break
        assert begun.is_set()
        yield
        end.set()
        for _ in range(50):
            await asyncio.sleep(0.02)
            if here.loop.journal.moves:
                break
        await here.manager.swaps.settled()
    finally:
        end.set()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_the_event_loop_goes_on_while_a_policy_thinks(monkeypatch):
    """Tokens pass through it."""
    async with rig(ADAPTIVE) as here:
        async with thinking(here, monkeypatch):
            assert here.experts == START
            assert here.loop.state() == "Running."
        assert here.experts == HOT


async def test_what_it_decided_on_another_placement_is_not_done(monkeypatch):
    async with rig(ADAPTIVE) as here:
        async with thinking(here, monkeypatch):
            etag = here.manager.placement().etag
            here.manager.apply(ExplicitGoal(((1, (3, 4)),), partial=True), etag=etag)
            await here.manager.swaps.settled()
            # As an operator who sets it again, so that it may move.
            here.manager.policy_hold.set("adaptive")
        assert set(here.experts[0]) <= {3, 4, *HOT[0]}
        # It decides anew at once: what it did not do does not count as moved.
        assert here.loop.journal.moves
        assert here.loop.state() == "Running."  # and does not cool off
        assert not here.conditions.get(ROLLED_BACK)


async def test_nor_when_another_policy_was_set_meanwhile(monkeypatch):
    async with rig(ADAPTIVE) as here:
        async with thinking(here, monkeypatch):
            here.loop.set(PolicyOptions())
        assert here.experts == START


async def test_a_failure_of_the_policy_before_does_not_cool_the_next_one(monkeypatch):
    async with rig(ADAPTIVE) as here:
        async with thinking(here, monkeypatch, then=lambda: 1 / 0):
            here.loop.set(PolicyOptions(name="dynamic", threshold=100))
        assert here.loop.state() == "Running."


async def test_a_failure_in_the_thread_makes_it_cool_off(monkeypatch):
    async with rig(ADAPTIVE) as here:
        async with thinking(here, monkeypatch, then=lambda: 1 / 0):
            pass
        assert "A turn of the policy failed" in here.loop.state()
