"""What operators ask for: plans, etags, undo, repeated requests; and what is refused."""

import pytest

from ktd.errors import (
    EngineNotReady,
    EtagRequired,
    ExpertNotFound,
    InvalidArgument,
    LayerNotFound,
    NothingToUndo,
    PlacementDoesNotFit,
    PlacementStale,
    PlanNotFound,
    StrategyUnknown,
    SwapInProgress,
)
from ktd.placement.goals import ExplicitGoal, StrategyGoal
from ktd.placement.manager import PlacementManager
from ktd.placement.model import ModelShape, Move
from ktd.placement.swap import SwapState
from tests.placement.conftest import SHAPE, START, bench_of
from tests.placement.fake_target import FakeTarget

RANDOM = StrategyGoal("random")


async def test_start_is_a_placement_of_its_own(bench):
    """Revision 1, in the history, not undoable."""
    placement = bench.manager.placement()
    assert (placement.revision, placement.origin, placement.experts) == (1, "start", START)
    (entry,) = bench.manager.history.entries
    assert (entry.revision, entry.actor, entry.moves) == (1, "daemon", 0)
    with pytest.raises(NothingToUndo):
        bench.manager.undo(etag=bench.etag)


async def test_etags_are_quoted_and_differ_between_daemons():
    """The same placement has another etag after a restart of the daemon."""
    async with bench_of() as one, bench_of() as other:
        assert one.etag[0] == one.etag[-1] == '"'
        assert one.etag != other.etag
        with pytest.raises(PlacementStale):
            other.apply({1: (4,)}, etag=one.etag)


async def test_change_without_etag_is_refused(bench):
    """Whoever has not read the placement may not change it."""
    for change in (lambda: bench.apply({1: (4,)}, etag=""), lambda: bench.manager.undo(etag="")):
        with pytest.raises(EtagRequired, match="no etag"):
            change()


async def test_stale_etag_is_refused_with_the_new_one(bench):
    """The refusal carries what to retry with."""
    old = bench.etag
    await bench.applied({1: (0, 4)})
    with pytest.raises(PlacementStale, match="revision 2") as refusal:
        bench.apply({1: (0, 5)}, etag=old)
    assert refusal.value.metadata == {"etag": bench.etag}


async def test_second_swap_is_refused_while_one_runs(bench):
    """Not queued; the running one is named."""
    gate = bench.target.hold("wait_copied")
    swap = bench.apply({1: (0, 4)})
    with pytest.raises(SwapInProgress, match=swap.id):
        bench.apply({1: (0, 5)})
    with pytest.raises(SwapInProgress):
        bench.apply({1: (0, 5)}, validate_only=True)
    gate.set()
    await bench.ended(swap)
    assert (await bench.applied({1: (0, 5)})).state is SwapState.SUCCEEDED


@pytest.mark.parametrize(
    ("layers", "partial", "error", "message"),
    [
        ({2: (0,)}, True, LayerNotFound, "Layer 2 has no experts: the MoE layers .* are 1, 3"),
        ({1: (6,)}, True, ExpertNotFound, "Layer 1 has no expert 6: its experts are 0 to 5"),
        ({1: (-1,)}, True, ExpertNotFound, "no expert -1"),
        ({1: (4, 4)}, True, ExpertNotFound, "Expert 4 of layer 1 is named twice"),
        ({1: (0, 1, 2)}, True, PlacementDoesNotFit, "Layer 1 has 2 slots, but 3 experts"),
        ({1: (0,)}, False, InvalidArgument, "does not name layer 3"),
        ({}, False, InvalidArgument, "does not name layers 1, 3"),
    ],
)
async def test_impossible_target_is_refused_and_changes_nothing(
    bench, layers, partial, error, message
):
    """One sentence with the values, for plan and apply alike."""
    before = bench.manager.placement()
    goal = ExplicitGoal(tuple(layers.items()), partial=partial)
    for call in (bench.manager.plan, lambda goal: bench.manager.apply(goal, etag=bench.etag)):
        with pytest.raises(error, match=message):
            call(goal)
    assert bench.manager.placement() == before
    assert bench.target.calls == []
    assert bench.manager.swaps.all() == ()


async def test_layer_named_twice_is_refused(bench):
    """Which of the two would count?"""
    with pytest.raises(InvalidArgument, match="Layer 1 is named twice"):
        bench.manager.plan(ExplicitGoal(((1, (0,)), (1, (2,))), partial=True))


async def test_unknown_strategy_is_refused(bench):
    """By name."""
    with pytest.raises(StrategyUnknown, match="'magic'"):
        bench.manager.plan(StrategyGoal("magic"))


async def test_partial_target_leaves_other_layers(bench):
    """And a whole one names them all, in any order of experts."""
    await bench.applied({3: (5, 0)})
    assert bench.target.experts == ((0, 1), (0, 5))
    await bench.applied({3: (), 1: (5,)}, partial=False)
    assert bench.target.experts == ((5,), ())


async def test_validate_only_checks_everything_and_starts_nothing(bench):
    """The answer has the moves, but no id."""
    swap = bench.apply({1: (0, 4)}, validate_only=True, request_id="r")
    assert (swap.id, swap.moves, swap.bytes_total) == ("", (Move(1, 1, 4),), 10)
    assert bench.manager.swaps.all() == ()
    assert bench.target.calls == []
    with pytest.raises(PlacementStale):
        bench.apply({1: (0, 4)}, validate_only=True, etag='"x"')
    assert bench.apply({1: (0, 4)}, request_id="r").id


async def test_target_that_is_reached_already_succeeds_at_once(bench):
    """No moves, no new revision, nothing to undo."""
    swap = bench.apply({1: (1, 0)})
    assert (swap.state, swap.revision, swap.etag) == (SwapState.SUCCEEDED, 1, bench.etag)
    assert bench.manager.revision == 1
    assert len(bench.manager.history.entries) == 1
    assert [change async for change in bench.manager.swaps.watch(swap.id)] == [swap]


async def test_repeated_request_returns_the_first_swap(bench):
    """For ten minutes, even though the etag has moved since."""
    old = bench.etag
    first = await bench.applied({1: (0, 4)}, request_id="r", etag=old)
    again = bench.apply({1: (0, 4)}, request_id="r", etag=old)
    assert again == first
    assert bench.manager.revision == 2
    bench.clock.now += 601
    with pytest.raises(PlacementStale):
        bench.apply({1: (0, 4)}, request_id="r", etag=old)


async def test_refused_request_may_be_repeated(bench):
    """An id is remembered when its call was accepted, not before."""
    with pytest.raises(PlacementStale):
        bench.apply({1: (0, 4)}, request_id="r", etag='"x"')
    assert (await bench.applied({1: (0, 4)}, request_id="r")).state is SwapState.SUCCEEDED


async def test_plan_tells_moves_bytes_and_effect():
    """Hit rates come from the recorded counts."""
    counts = [[5, 1, 0, 0, 9, 5], [0, 0, 0, 10, 0, 0]]
    async with bench_of(counts=lambda: counts) as bench:
        plan = bench.manager.plan(StrategyGoal("frequency"))
        assert plan.experts == ((0, 4), (0, 1, 3))
        assert plan.moves == (Move(1, 1, 4), Move(3, None, 3))
        assert plan.bytes == 20
        assert plan.before.hit_rate == pytest.approx(6 / 30)
        assert plan.after.hit_rate == pytest.approx(24 / 30)
        assert plan.etag == bench.etag
        assert bench.target.calls == []


async def test_plan_without_statistics_says_so(bench):
    """frequency falls back to the even prefix."""
    plan = bench.manager.plan(StrategyGoal("frequency"))
    assert "no activation statistics" in plan.notes[0]
    assert plan.after.hit_rate == 0.0
    assert plan.experts == ((0, 1), (0, 1, 2))


async def test_plan_is_applied_once(bench):
    """Its origin is the strategy's name; afterwards it is forgotten."""
    plan = bench.manager.plan(RANDOM)
    checked = bench.manager.apply_plan(plan.id, validate_only=True)
    assert (checked.id, checked.moves) == ("", plan.moves)
    swap = await bench.ended(bench.manager.apply_plan(plan.id))
    assert swap.moves == plan.moves
    assert bench.manager.placement().origin == "random"
    assert bench.target.experts == plan.experts
    with pytest.raises(PlanNotFound):
        bench.manager.apply_plan(plan.id)


async def test_plan_expires_after_a_minute(bench):
    """By the daemon's clock."""
    plan = bench.manager.plan(RANDOM)
    assert plan.expire_time == bench.clock.now + 60
    bench.clock.now += 59
    bench.manager.apply_plan(plan.id, validate_only=True)
    bench.clock.now += 1
    with pytest.raises(PlanNotFound, match="60 seconds"):
        bench.manager.apply_plan(plan.id)


async def test_plan_is_stale_when_the_placement_has_moved(bench):
    """It was worked out against another placement."""
    plan = bench.manager.plan(RANDOM)
    await bench.applied({1: (0, 5)})
    with pytest.raises(PlacementStale):
        bench.manager.apply_plan(plan.id)


async def test_plan_does_not_outlive_a_stale_etag_of_the_caller(bench):
    """A caller may send its etag along; it must agree too."""
    plan = bench.manager.plan(RANDOM)
    with pytest.raises(PlacementStale):
        bench.manager.apply_plan(plan.id, etag='"x"')


async def test_undo_walks_back_step_by_step(bench):
    """Each undo goes one operator's change further, not to and fro."""
    await bench.applied({1: (0, 4)})
    await bench.applied({1: (0, 5)})
    await bench.ended(bench.manager.undo(etag=bench.etag, actor="uid=7 pid=8"))
    assert bench.target.experts[0] == (0, 4)
    placement = bench.manager.placement()
    assert (placement.origin, placement.revision) == ("undo", 4)
    assert bench.manager.history.entries[0].actor == "uid=7 pid=8"
    await bench.ended(bench.manager.undo(etag=bench.etag))
    assert bench.target.experts == START
    with pytest.raises(NothingToUndo):
        bench.manager.undo(etag=bench.etag)


async def test_history_says_where_undo_can_go(bench):
    """Placements that were replaced, until undo has passed them."""

    def undoable():
        history = bench.manager.history
        return [entry.revision for entry in history.entries if history.undoable(entry.revision)]

    await bench.applied({1: (0, 4)})
    await bench.applied({1: (0, 5)})
    assert undoable() == [2, 1]
    await bench.ended(bench.manager.undo(etag=bench.etag))
    assert undoable() == [1]
    await bench.applied({1: (0, 2)})
    assert undoable() == [4, 1]


async def test_failed_and_cancelled_changes_leave_no_history(bench):
    """Only what was committed can be undone."""
    bench.target.fail_on("publish")
    await bench.applied({1: (0, 4)})
    assert len(bench.manager.history.entries) == 1
    with pytest.raises(NothingToUndo):
        bench.manager.undo(etag=bench.etag)


async def test_failed_undo_can_be_repeated(bench):
    """It did not use up the way back."""
    await bench.applied({1: (0, 4)})
    bench.target.fail_on("publish")
    await bench.ended(bench.manager.undo(etag=bench.etag))
    assert bench.target.experts[0] == (0, 4)
    await bench.ended(bench.manager.undo(etag=bench.etag))
    assert bench.target.experts == START


async def test_nothing_is_known_before_the_first_engine():
    """Reads and changes say what to wait for."""
    async with PlacementManager() as manager:
        for call in (manager.placement, lambda: manager.plan(RANDOM)):
            with pytest.raises(EngineNotReady, match="has not started yet"):
                call()
        assert manager.revision == 0
        assert not manager.ready


async def test_placement_outlives_the_engine(bench):
    """Get and plan answer from the last committed one; a restart keeps revision and etag."""
    await bench.applied({1: (0, 4)})
    before = bench.manager.placement()
    bench.manager.detach("The engine was killed.")
    assert bench.manager.placement() == before
    assert bench.manager.plan(RANDOM).moves
    with pytest.raises(EngineNotReady, match="killed"):
        bench.manager.undo(etag=bench.etag)
    restarted = FakeTarget(SHAPE, before.experts)
    await bench.manager.attach(restarted, SHAPE, before.experts)
    assert bench.manager.placement() == before
    await bench.ended(bench.manager.undo(etag=bench.etag))
    assert restarted.experts == START


async def test_restart_with_other_slots_is_a_new_placement(bench):
    """What no longer fits can no longer be undone."""
    await bench.applied({1: (0, 4)})
    await bench.applied({3: (0,)})
    smaller = ModelShape((1, 3), 6, (2, 1), 10)
    await bench.manager.attach(FakeTarget(smaller, ((0, 4), (0,))), smaller, ((0, 4), (0,)))
    assert bench.manager.revision == 4
    with pytest.raises(NothingToUndo):
        bench.manager.undo(etag=bench.etag)


async def test_engine_that_lies_about_its_placement_is_not_attached(bench):
    """A programming error of the caller, not an operator's."""
    with pytest.raises(ValueError, match="does not fit"):
        await bench.manager.attach(bench.target, SHAPE, ((0, 1, 2), ()))


async def test_large_model_is_planned_through_the_same_path():
    """94 layers of 512 experts: every move is there. (Its time is printed by the benchmark.)"""
    shape = ModelShape(tuple(range(94)), 512, (128,) * 94, 1000)
    start = (tuple(range(128)),) * 94
    counts = [list(range(512)) for _ in range(94)]
    async with bench_of(shape=shape, start=start, counts=lambda: counts) as bench:
        plan = bench.manager.plan(StrategyGoal("frequency"))
    assert len(plan.moves) == 94 * 128
    assert plan.experts[50] == tuple(range(384, 512))
