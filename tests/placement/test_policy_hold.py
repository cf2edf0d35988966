"""An operator and a policy on one placement: who waits, who is refused, what undo walks."""

import asyncio

import pytest

from ktd.errors import NothingToUndo, PlacementDoesNotFit, PlacementStale, PolicyHeld
from ktd.placement.goals import ExplicitGoal, StrategyGoal
from ktd.placement.manager import PlacementManager
from ktd.placement.store import PlacementStore
from ktd.placement.swap import SwapState
from tests.placement.conftest import SHAPE, START
from tests.placement.fake_target import FakeTarget

ONE, TWO, THREE = ((0, 2), (0, 1)), ((0, 3), (0, 1)), ((0, 4), (0, 1))


async def moved_by_policy(bench, experts):
    swap = bench.manager.apply_policy("adaptive", experts, etag=bench.etag)
    return await bench.ended(swap)


async def test_policy_moves_under_its_own_origin(bench):
    """Seen in the placement, the swap and the history, by the daemon."""
    bench.manager.policy_hold.set("adaptive")
    swap = await moved_by_policy(bench, ONE)
    assert (swap.state, swap.origin, swap.by_policy) == (SwapState.SUCCEEDED, "policy:adaptive", 1)
    assert bench.target.experts == ONE
    entry = bench.manager.history.entries[0]
    assert (entry.origin, entry.actor, entry.moves) == ("policy:adaptive", "daemon", 1)


async def test_policy_in_a_row_is_one_entry(bench):
    """So that a busy policy does not crowd operators out of the history."""
    await moved_by_policy(bench, ONE)
    await moved_by_policy(bench, TWO)
    newest, *rest = bench.manager.history.entries
    assert (newest.moves, newest.bytes, newest.revision) == (2, 20, 3)
    assert [entry.origin for entry in rest] == ["start"]
    await bench.applied({1: (0, 1)})
    await moved_by_policy(bench, ONE)
    origins = [entry.origin for entry in bench.manager.history.entries]
    assert origins == ["policy:adaptive", "explicit", "policy:adaptive", "start"]


async def test_plan_holds_the_policy_for_sixty_seconds(bench):
    """And says so; afterwards the policy may move again, and the plan is gone."""
    bench.manager.policy_hold.set("adaptive")
    plan = bench.manager.plan(StrategyGoal("uniform"))
    assert "The policy adaptive moves nothing for the next 60 seconds." in plan.notes
    bench.clock.now += 59
    with pytest.raises(PolicyHeld, match="plan holds the policy's moves for another 1 seconds"):
        bench.manager.apply_policy("adaptive", ONE, etag=bench.etag)
    bench.clock.now += 1.5
    assert (await moved_by_policy(bench, ONE)).state is SwapState.SUCCEEDED


async def test_apply_pauses_the_policy_until_it_is_set_again(bench):
    """However long that takes; the swap says so."""
    hold = bench.manager.policy_hold
    hold.set("adaptive")
    swap = await bench.applied({1: (0, 5)})
    assert swap.notes == (
        "The policy adaptive is paused until it is set again (ktd policy set adaptive).",
    )
    bench.clock.now += 86400
    with pytest.raises(PolicyHeld, match="An operator changed the placement"):
        bench.manager.apply_policy("adaptive", ONE, etag=bench.etag)
    (note,) = bench.manager.plan(StrategyGoal("uniform")).notes
    assert note.startswith("The policy adaptive stays paused: An operator changed")
    hold.set("adaptive")
    assert (await moved_by_policy(bench, ONE)).state is SwapState.SUCCEEDED


async def test_nothing_is_said_or_paused_without_a_policy(bench):
    """Most daemons run none."""
    assert bench.manager.plan(StrategyGoal("uniform")).notes == ()
    assert (await bench.applied({1: (0, 5)})).notes == ()
    assert bench.manager.policy_hold.paused == ""


async def test_check_only_does_not_pause(bench):
    """It promised to change nothing."""
    bench.manager.policy_hold.set("adaptive")
    bench.apply({1: (0, 5)}, validate_only=True)
    assert bench.manager.policy_hold.paused == ""


async def test_undo_walks_operators_changes_only(bench):
    """A policy's moves are no step of it, and it pauses the policy like any change."""
    await bench.applied({1: (0, 5)})
    bench.manager.policy_hold.set("adaptive")
    await moved_by_policy(bench, ONE)
    await moved_by_policy(bench, TWO)
    swap = await bench.ended(bench.manager.undo(etag=bench.etag))
    assert bench.target.experts == START
    assert "the placement of revision 1, whatever a policy has moved since" in swap.notes[0]
    assert swap.notes[1].startswith("The policy adaptive is paused")
    assert bench.manager.policy_hold.paused.startswith("An operator undid a change")
    with pytest.raises(NothingToUndo):
        bench.manager.undo(etag=bench.etag)


async def test_policys_own_moves_cannot_be_undone(bench):
    """There is nothing of an operator's to go back to."""
    await moved_by_policy(bench, ONE)
    with pytest.raises(NothingToUndo):
        bench.manager.undo(etag=bench.etag)


async def test_operator_waits_for_a_policys_swap_and_none_follows(bench):
    """Not refused: an operator never sees SWAP_IN_PROGRESS because of a policy."""
    gate = bench.target.hold("wait_copied")
    bench.manager.apply_policy("adaptive", ONE, etag=bench.etag)
    turn = asyncio.create_task(bench.manager.operators_turn())
    await asyncio.sleep(0)
    assert not turn.done()
    gate.set()
    await turn
    assert bench.manager.placement().experts == ONE
    with pytest.raises(PolicyHeld):
        bench.manager.apply_policy("adaptive", TWO, etag=bench.etag)
    assert (await bench.applied({1: (0, 5)})).state is SwapState.SUCCEEDED


async def test_policy_is_refused_what_an_operator_would_be(bench):
    """A stale decision, and what does not fit the slots."""
    old = bench.etag
    await moved_by_policy(bench, ONE)
    with pytest.raises(PlacementStale):
        bench.manager.apply_policy("adaptive", TWO, etag=old)
    with pytest.raises(PlacementDoesNotFit, match="adaptive"):
        bench.manager.apply_policy("adaptive", ((0, 1, 2), ()), etag=bench.etag)


async def test_busy_policy_does_not_make_an_operators_swap_unknown(bench):
    """Who waits for a swap can still ask for it after many of the policy's."""
    swap = await bench.applied({1: (0, 5)})
    for turn in range(60):
        await moved_by_policy(bench, (ONE, TWO)[turn % 2])
    assert bench.manager.swaps.get(swap.id).state is SwapState.SUCCEEDED
    assert len(bench.manager.swaps.all()) == 51


async def test_policys_placement_is_saved_when_the_daemon_ends(tmp_path):
    """Put off while it runs, written at the end."""
    store = PlacementStore(tmp_path)
    async with PlacementManager(store=store, model="m") as manager:
        await manager.attach(FakeTarget(SHAPE, START), SHAPE, START)
        manager.apply_policy("adaptive", THREE, etag=manager.placement().etag)
        await manager.swaps.settled()
        assert store.load().experts == START
    assert store.load().experts == THREE


async def test_operators_change_is_saved_with_what_the_policy_did_before(tmp_path):
    """Saving the newer one leaves nothing behind that a later write could undo."""
    store = PlacementStore(tmp_path)
    async with PlacementManager(store=store, model="m") as manager:
        await manager.attach(FakeTarget(SHAPE, START), SHAPE, START)
        manager.apply_policy("adaptive", THREE, etag=manager.placement().etag)
        await manager.swaps.settled()
        goal = ExplicitGoal(((1, (0, 5)),), partial=True)
        manager.apply(goal, etag=manager.placement().etag)
        await manager.swaps.settled()
        assert store.load().experts == ((0, 5), (0, 1))
    assert store.load().experts == ((0, 5), (0, 1))
