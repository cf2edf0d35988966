"""Starting again with other slots: what is planned, taken once, kept and undone."""

import pytest

from ktd.errors import (
    EtagRequired,
    InvalidArgument,
    NothingToUndo,
    PlacementStale,
    PlanNotFound,
    SwapInProgress,
)
from ktd.placement.goals import ExplicitGoal, StrategyGoal
from ktd.placement.manager import PlacementManager
from ktd.placement.model import ModelShape
from ktd.placement.restarts import Restarts
from ktd.placement.store import PlacementStore
from tests.placement.conftest import SHAPE, START, bench_of
from tests.placement.fake_target import FakeTarget

COUNTS = [[5, 1, 0, 0, 9, 5], [0, 0, 0, 10, 0, 0]]
FREQUENCY = StrategyGoal("frequency")
WANTED = (4, 1), ((0, 1, 4, 5), (3,))


@pytest.fixture
async def counted():
    async with bench_of(counts=lambda: COUNTS) as bench:
        yield bench


async def test_strategy_gets_the_slots_it_would_like(counted):
    """As many as now, split as its initial choice wants."""
    restarts = Restarts(counted.manager)
    start = restarts.check(FREQUENCY, "", etag=counted.etag, actor="uid=7 pid=1")
    assert (start.shape.slots, start.experts) == WANTED
    assert (start.origin, start.actor) == ("frequency", "uid=7 pid=1")
    assert start.shape.expert_bytes == SHAPE.expert_bytes
    assert restarts.take() is None
    restarts.plan(start)
    assert restarts.take() == start
    assert restarts.take() is None


async def test_plan_is_restarted_with_what_it_offered(counted):
    """Also when the statistics have changed since it was shown."""
    plan = counted.manager.plan(FREQUENCY)
    COUNTS[0].reverse()
    try:
        start = Restarts(counted.manager).check(None, plan.id, etag="")
    finally:
        COUNTS[0].reverse()
    assert (start.shape.slots, start.experts) == WANTED


async def test_restart_is_refused_as_a_change_would_be(counted):
    """Stale, without etag, unknown plan, no strategy, during a swap."""
    restarts = Restarts(counted.manager)
    with pytest.raises(EtagRequired):
        restarts.check(FREQUENCY, "", etag="")
    with pytest.raises(PlanNotFound):
        restarts.check(None, "nope", etag="")
    with pytest.raises(InvalidArgument, match="Only a strategy chooses slots"):
        restarts.check(ExplicitGoal(()), "", etag=counted.etag)
    old, plan = counted.etag, counted.manager.plan(FREQUENCY)
    await counted.applied({1: (0, 5)})
    with pytest.raises(PlacementStale):
        restarts.check(FREQUENCY, "", etag=old)
    with pytest.raises(PlacementStale):
        restarts.check(None, plan.id, etag="")
    gate = counted.target.hold("wait_copied")
    swap = counted.apply({1: (0, 4)})
    with pytest.raises(SwapInProgress):
        restarts.check(FREQUENCY, "", etag=counted.etag)
    gate.set()
    await counted.ended(swap)


async def test_restart_pauses_the_policy(counted):
    """As an apply does, and it says so; without a policy there is nothing to say."""
    restarts = Restarts(counted.manager)
    start = restarts.check(FREQUENCY, "", etag=counted.etag)
    assert restarts.plan(start) == ()
    counted.manager.policy_hold.set("adaptive")
    (told,) = restarts.plan(start)
    assert "paused until it is set again" in told
    assert counted.manager.policy_hold.paused.startswith("An operator has restarted")


async def test_restarted_engine_is_in_the_history_and_on_the_disk(tmp_path):
    """With its actor; another daemon restores slots and experts."""
    store = PlacementStore(tmp_path)
    shape = ModelShape(SHAPE.moe_layers, SHAPE.num_experts, WANTED[0], SHAPE.expert_bytes)
    async with PlacementManager(store=store, model="m") as manager:
        await manager.attach(FakeTarget(SHAPE, START), SHAPE, START)
        await manager.attach(FakeTarget(shape, WANTED[1]), shape, WANTED[1], "frequency", "uid=7")
        entry = manager.history.entries[0]
        assert (entry.origin, entry.actor, entry.revision) == ("frequency", "uid=7", 2)
    stored = PlacementManager(store=store, model="m").restorable
    assert (stored.shape, stored.experts) == (shape, WANTED[1])


async def test_undo_leads_back_behind_a_restart_only_where_the_slots_allow(counted):
    """One expert a layer fits the new slots; two in the second layer do not."""
    manager = counted.manager
    shape = ModelShape(SHAPE.moe_layers, SHAPE.num_experts, WANTED[0], SHAPE.expert_bytes)
    await manager.attach(FakeTarget(shape, WANTED[1]), shape, WANTED[1], "frequency", "uid=7")
    with pytest.raises(NothingToUndo):
        manager.undo(etag=counted.etag)
    wider = ModelShape(SHAPE.moe_layers, SHAPE.num_experts, (4, 2), SHAPE.expert_bytes)
    target = FakeTarget(wider, ((0, 1, 4, 5), (3, 4)))
    await manager.attach(target, wider, ((0, 1, 4, 5), (3, 4)), "frequency", "uid=7")
    await counted.ended(manager.undo(etag=counted.etag))
    assert target.experts == WANTED[1]
