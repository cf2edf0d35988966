"""The loop beside a placement manager and ranks in memory."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field

import numpy as np
import pytest

from ktd.placement.goals import ExplicitGoal, StrategyGoal
from ktd.placement.manager import PlacementManager
from ktd.placement.model import ModelShape
from ktd.policy.counted import Counted
from ktd.policy.loop import NOT_FIRING, PolicyLoop
from ktd.policy.options import PolicyOptions
from ktd.policy.session import ROLLED_BACK
from tests.placement.fake_target import FakeTarget

SHAPE = ModelShape(moe_layers=(1, 3), num_experts=8, slots=(2, 2), expert_bytes=1000)
START = ((0, 1), (0, 1))
HOT = ((5, 6), (2, 7))
OTHER = ((2, 7), (0, 5))


@dataclass
class Engine:
    """Counts of an engine whose tokens choose the experts in ``hot``, and a clock."""

    hot: tuple[tuple[int, ...], ...] = HOT
    now: float = 0.0
    step_seconds: float = 0.01
    engine_id: str = "one"
    decode: np.ndarray = field(default_factory=lambda: np.zeros((2, 8), np.int64))
    prefill: np.ndarray = field(default_factory=lambda: np.zeros((2, 8), np.int64))
    tokens: int = 0
    prefilled: int = 0
    prefills: int = 0
    fails: bool = False
    called: float = 0.0
    calls_take: float = 0.0  # seconds that each look finds more

    def move_call_seconds(self):
        self.called += self.calls_take
        return self.called

    def steps(self):
        return self.tokens + self.prefills

    def read(self):
        if self.fails:
            raise ZeroDivisionError
        return Counted(
            self.engine_id, self.decode.copy(), self.prefill.copy(), self.tokens,
            self.prefilled, self.tokens, self.prefills,
        )  # fmt: skip

    def decodes(self, tokens):
        for layer, chosen in enumerate(self.hot):
            self.decode[layer, list(chosen)] += tokens
        self.tokens += tokens
        self.now += tokens * self.step_seconds

    def prefills_once(self, tokens):
        for layer, chosen in enumerate(self.hot):
            self.prefill[layer, list(chosen)] += tokens
        self.prefilled += tokens
        self.prefills += 1


@dataclass
class Rig:
    engine: Engine
    manager: PlacementManager
    target: FakeTarget
    loop: PolicyLoop
    conditions: dict[str, str | None]

    async def turns(self, count=20, tokens=100):
        for _ in range(count):
            self.engine.decodes(tokens)
            await self.loop.turn()
            await self.manager.swaps.settled()

    @property
    def experts(self):
        return self.manager.placement().experts


@contextlib.asynccontextmanager
async def rig(options, *, copy_pairs=lambda: 0.0, advice=lambda _: "", start=START, **more):
    engine, target, conditions = Engine(), FakeTarget(SHAPE, start), {}
    async with PlacementManager() as manager:
        await manager.attach(target, SHAPE, start)
        loop = PolicyLoop(
            manager, engine, options, on_condition=conditions.__setitem__, copy_pairs=copy_pairs,
            advice=advice, monotonic=lambda: engine.now, **more,
        )  # fmt: skip
        yield Rig(engine, manager, target, loop, conditions)


ADAPTIVE = PolicyOptions(name="adaptive")


async def test_off_moves_nothing():
    async with rig(PolicyOptions()) as here:
        await here.turns()
        assert here.experts == START
        assert "No policy runs" in here.loop.state()


async def test_adaptive_moves_what_is_used_and_says_why():
    async with rig(ADAPTIVE) as here:
        await here.turns()
        assert here.experts == HOT
        assert here.target.experts == HOT
        found = await here.loop.explain()
        assert found.state == "Running."
        assert {(one.layer, one.choice.load) for one in found.moves} == {
            (1, 5), (1, 6), (3, 2), (3, 7),
        }  # fmt: skip
        assert all(one.outcome == "SUCCEEDED" for one in found.moves)
        assert all(one.choice.gain > one.choice.cost for one in found.moves)
        assert found.moved == 4
        assert here.manager.history.entries[0].origin == "policy:adaptive"


async def test_a_swap_whose_calls_took_long_is_followed_by_a_rest():
    """Fifty times what they took: 2 % of the scheduler's time, also if it is set again."""
    async with rig(ADAPTIVE) as here:
        here.engine.calls_take = 0.4
        await here.turns(8)
        here.engine.hot = START
        assert here.experts == HOT
        here.loop.set(here.loop.options)
        began = here.engine.now
        while here.experts == HOT and here.engine.now < began + 100:
            await here.turns(1)
        last = (await here.loop.explain()).moves[-1]
        assert last.outcome == "SUCCEEDED"
        assert here.experts != HOT
        assert here.engine.now > 0.4 / 0.02


async def test_where_a_bench_asks_for_it_empty_slots_stay_empty():
    """A layer of two slots with one expert keeps one, and it is one that is used."""
    async with rig(ADAPTIVE, start=((0,), (0, 1)), exchanges_only=True) as here:
        await here.turns()
        assert [len(chosen) for chosen in here.experts] == [1, 2]
        assert set(here.experts[0]) < set(HOT[0])
        assert here.experts[1] == HOT[1]
    async with rig(ADAPTIVE, start=((0,), (0, 1))) as here:
        await here.turns()
        assert here.experts == HOT


async def test_an_operators_plan_holds_and_a_change_pauses_until_it_is_set_again():
    async with rig(ADAPTIVE) as here:
        here.manager.plan(StrategyGoal("uniform"))
        await here.turns()
        assert here.experts == START
        assert "plan holds" in here.loop.state()
        goal = ExplicitGoal(((1, (3, 4)), (3, (3, 4))))
        here.manager.apply(goal, etag=here.manager.placement().etag)
        await here.manager.swaps.settled()
        await here.turns()
        assert here.experts == ((3, 4), (3, 4))
        assert "An operator changed the placement" in here.loop.state()
        reasons = {choice.reason for _, choice in (await here.loop.explain()).considered}
        assert any("An operator changed" in reason for reason in reasons)
        here.loop.set(ADAPTIVE)
        await here.turns(5)
        assert here.experts == HOT


async def test_undo_leaves_the_policys_moves_alone():
    async with rig(ADAPTIVE) as here:
        await here.turns()
        assert here.manager.history.entries[0].origin == "policy:adaptive"
        assert not here.manager.history.undo_points


async def test_while_an_operators_swap_runs_nothing_is_decided():
    async with rig(ADAPTIVE) as here:
        here.target.delay["wait_copied"] = 0.2
        goal = ExplicitGoal(((1, (3, 4)), (3, (3, 4))))
        here.manager.apply(goal, etag=here.manager.placement().etag)
        here.loop.set(ADAPTIVE)
        for _ in range(20):
            here.engine.decodes(100)
            await here.loop.turn()
        assert here.loop.state() == "Running."
        await here.manager.swaps.settled()
        await here.turns(5)
        assert here.experts == HOT


async def test_slower_steps_are_rolled_back_and_said():
    async with rig(PolicyOptions(name="dynamic", threshold=100)) as here:
        await here.turns(20)
        here.engine.prefills_once(100)
        await here.turns(2)
        assert here.experts == HOT
        here.engine.step_seconds = 0.02
        await here.turns(12)
        assert here.experts == START
        assert "before them" in here.conditions[ROLLED_BACK]
        assert "moves nothing for another" in here.loop.state()
        found = await here.loop.explain()
        assert found.rollbacks == 1
        assert "before them" in found.moves[0].why
        await here.turns(2)
        assert here.experts == START
        here.loop.set(here.loop.options)
        assert here.conditions[ROLLED_BACK] is None


async def moved_after_many_means(here):
    """The policy has just moved, and knows how long steps took before that."""
    here.target.fail_on("prepare")
    while here.experts != HOT:
        await here.turns(1)
        assert here.engine.now < 120
    here.engine.step_seconds = 0.02
    await here.turns(6)
    assert here.experts == HOT


async def test_slower_steps_of_the_same_workload_are_rolled_back_by_adaptive_too():
    """Once the workload has had the time to be seen as another one."""
    async with rig(ADAPTIVE) as here:
        await moved_after_many_means(here)
        assert "looks whether that is the workload" in here.loop.state()
        await here.turns(1)
        assert here.experts == HOT
        await here.turns(2)
        assert here.experts == START
        assert (await here.loop.explain()).rollbacks == 1


async def test_steps_that_another_workload_makes_slower_are_no_setback():
    """It begins with the last step time of a trial, and is seen as a shift only after that."""
    async with rig(ADAPTIVE) as here:
        await moved_after_many_means(here)
        here.engine.hot = OTHER
        await here.turns(12)
        assert here.experts == OTHER
        assert (await here.loop.explain()).rollbacks == 0
        assert here.conditions[ROLLED_BACK] is None


async def test_an_engine_that_is_started_again_has_no_setback():
    """Nor are the experts of another engine's time put back."""
    async with rig(ADAPTIVE) as here:
        await moved_after_many_means(here)
        here.engine.engine_id = "two"
        await here.turns(6)
        assert here.experts == HOT
        assert (await here.loop.explain()).rollbacks == 0


async def test_a_failed_swap_cools_the_policy_off():
    async with rig(ADAPTIVE) as here:
        here.target.fail_on("prepare")
        await here.turns(3)
        assert here.experts == START
        assert "Its last swap failed" in here.loop.state()
        here.engine.now += 61
        await here.turns(10)
        assert here.experts == HOT
        assert "FAILED" in {one.outcome for one in (await here.loop.explain(100)).moves}


async def test_a_bug_is_logged_and_the_loop_goes_on():
    async with rig(ADAPTIVE) as here:
        here.engine.fails = True
        await here.turns(2)
        assert "failed; the daemon's log" in here.loop.state()
        here.engine.fails = False
        here.engine.now += 500
        await here.turns(10)
        assert here.experts == HOT


async def test_an_engine_that_is_started_again_is_counted_from_its_start():
    async with rig(ADAPTIVE) as here:
        await here.turns()
        here.manager.detach("It ended.")
        await here.loop.turn()
        assert "No engine runs" in here.loop.state()
        seen = (await here.loop.explain()).facts["tokens_seen"]
        await here.manager.attach(FakeTarget(SHAPE, HOT), SHAPE, HOT)
        here.engine.engine_id = "two"
        here.engine.decode[:], here.engine.tokens = 0, 0
        await here.turns(3)
        assert (await here.loop.explain()).facts["tokens_seen"] == seen + 200
        assert here.loop.state() == "Running."


async def test_dynamic_follows_long_prefills_only():
    async with rig(PolicyOptions(name="dynamic", threshold=100)) as here:
        await here.turns(3)
        here.engine.prefills_once(99)
        await here.turns(3)
        assert here.experts == START
        here.engine.prefills_once(100)
        await here.turns(3)
        assert here.experts == HOT
        assert here.manager.history.entries[0].origin == "policy:dynamic"


async def test_what_can_never_fire_is_a_condition():
    async with rig(
        PolicyOptions(name="dynamic"), advice=lambda one: "Never." * (one.name == "dynamic")
    ) as here:
        assert here.conditions[NOT_FIRING] == "Never."
        assert here.loop.notes() == ("Never.",)
        here.loop.set(ADAPTIVE)
        assert here.conditions[NOT_FIRING] is None


async def test_slow_copies_cost_more():
    async with rig(ADAPTIVE, copy_pairs=lambda: 1e9) as here:
        await here.turns()
        assert here.experts == START
        assert (await here.loop.explain()).facts["copy_cost_pairs"] == 1e9


@pytest.mark.parametrize(("copies", "cost"), [(1.0, 4.0), (30.0, 30.0)])
async def test_where_copies_have_a_link_of_their_own_they_cost_little(copies, cost):
    """But no less than was measured, and what an operator says wins."""
    async with rig(ADAPTIVE, usual_copy_cost=4.0, copy_pairs=lambda: copies) as here:
        await here.turns()
        assert here.experts == HOT
        assert (await here.loop.explain()).facts["copy_cost_pairs"] == cost
        here.loop.set(PolicyOptions(name="adaptive", copy_cost=7.0))
        assert (await here.loop.explain()).facts["copy_cost_pairs"] == 7.0


async def test_a_bench_changes_how_many_slots_a_policy_may_use():
    """Exchanges alone, in as many as the placement has now; what it learned stays."""
    async with rig(ADAPTIVE, exchanges_only=True, start=((0,), (0,))) as here:
        await here.turns()
        assert here.experts == ((5,), (2,))
        etag = here.manager.placement().etag
        here.manager.apply(ExplicitGoal(((1, (0, 5)), (3, (0, 2)))), etag=etag)
        await here.manager.swaps.settled()
        here.loop.set(ADAPTIVE)
        await here.turns()
        assert here.experts == HOT


async def test_setting_it_again_keeps_what_was_learned():
    async with rig(ADAPTIVE) as here:
        await here.turns()
        seen = (await here.loop.explain()).facts["tokens_seen"]
        here.loop.set(PolicyOptions(name="adaptive", copy_cost=7.0))
        facts = (await here.loop.explain()).facts
        assert facts["tokens_seen"] == seen
        assert facts["copy_cost_pairs"] == 7.0
        here.loop.set(PolicyOptions())
        assert (await here.loop.explain()).facts == {}
        await here.turns(5)
        here.loop.set(PolicyOptions(name="dynamic", threshold=100))
        here.loop.set(ADAPTIVE)
        assert (await here.loop.explain()).facts["tokens_seen"] == seen
        await here.turns(5)
        assert (await here.loop.explain()).facts["tokens_seen"] > seen


async def test_run_ticks_until_it_is_cancelled():
    async with rig(ADAPTIVE) as here:
        task = asyncio.create_task(here.loop.run())
        for _ in range(20):
            here.engine.decodes(100)
            await asyncio.sleep(0.1)
            if here.experts == HOT:
                break
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert here.experts == HOT
