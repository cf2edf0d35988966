"""The life of a swap: every phase, and everything that can go wrong in it."""

import asyncio
import gc
from types import BuiltinFunctionType, FrameType, FunctionType, ModuleType

import pytest

from ktd.errors import EngineNotReady, SwapInProgress, SwapNotCancellable, SwapNotFound
from ktd.placement.model import Move
from ktd.placement.swap import BatchLimits, SwapState
from tests.placement.conftest import START, bench_of
from tests.placement.fake_target import FakeTarget

# Two layers change, one expert is loaded into a free slot: three batches of one move.
GOAL = {1: (0, 4), 3: (1, 2, 5)}
REACHED = ((0, 4), (1, 2, 5))
STEPS = ("prepare", "wait_copied", "publish")


ELSEWHERE = (type, ModuleType, FunctionType, BuiltinFunctionType, FrameType, FakeTarget)


def moves_reached(root):
    """Objects that are moves, from a swap's runner on."""
    seen, left, found = set(), [root], 0
    while left:
        one = left.pop()
        # Through functions, modules and classes everything is reached.
        if id(one) in seen or issubclass(type(one), ELSEWHERE):
            continue
        seen.add(id(one))
        found += type(one) is Move
        left += gc.get_referents(one)
    return found


@pytest.mark.parametrize("fails", [False, True])
async def test_what_is_kept_of_a_swap_is_nothing_for_the_collector(bench, fails):
    """Fifty are kept; objects for each of ten thousand moves would hold tokens up."""
    if fails:
        bench.target.fail_on("publish", 2)
    swap = await bench.applied(GOAL)
    assert (swap.state is SwapState.FAILED) is fails
    assert len(swap.moves) == 3
    assert moves_reached(bench.manager.swaps._runners) == 0


async def test_swap_goes_batch_by_batch_and_commits_once(bench):
    """Unmap, copy, publish, three times; then one new revision."""
    before = bench.manager.placement()
    swap = bench.apply(GOAL)
    assert swap.state is SwapState.STAGING
    assert bench.manager.placement() == before
    swap = await bench.ended(swap)
    assert swap.state is SwapState.SUCCEEDED
    first, second, third = (batch_id for step, batch_id in bench.target.calls if step == "publish")
    assert bench.target.calls == [
        ("prepare", first),
        ("prepare", second),  # while the first is copied
        ("wait_copied", first),
        ("publish", first),
        ("prepare", third),
        ("wait_copied", second),
        ("publish", second),
        ("wait_copied", third),
        ("publish", third),
    ]
    assert bench.target.experts == bench.manager.placement().experts == REACHED
    assert swap.revision == bench.manager.revision == before.revision + 1
    assert swap.etag == bench.etag != before.etag
    assert (swap.moves_done, swap.bytes_done, swap.bytes_total) == (3, 30, 30)
    assert bench.conditions == {}


async def test_batch_ids_never_repeat(bench):
    """Over swaps and roll-backs."""
    bench.target.fail_on("publish", 2)
    await bench.applied(GOAL)
    await bench.applied(GOAL)
    prepared = [batch_id for step, batch_id in bench.target.calls if step == "prepare"]
    assert len(prepared) == len(set(prepared))


async def test_watcher_sees_the_present_then_the_end(bench):
    """States go forward only, and the last one is terminal."""
    swap = bench.apply(GOAL)
    seen = [change async for change in bench.manager.swaps.watch(swap.id)]
    states = [change.state for change in seen]
    assert states[0] is SwapState.STAGING
    assert states == sorted(states)
    assert states[-1] is SwapState.SUCCEEDED
    assert SwapState.COMMITTING in states
    assert [change.moves_done for change in seen] == sorted(change.moves_done for change in seen)


async def test_late_watcher_sees_the_end_at_once(bench):
    """A swap that has ended is one message."""
    swap = await bench.applied(GOAL)
    assert [change async for change in bench.manager.swaps.watch(swap.id)] == [swap]


@pytest.mark.parametrize("partial", [False, True], ids=["no rank", "rank 0 only"])
@pytest.mark.parametrize("nth", [1, 2, 3])
@pytest.mark.parametrize("step", STEPS)
async def test_failure_at_any_step_restores_the_old_placement(bench, step, nth, partial):
    """Also when the step had reached some ranks: the old mapping is back on all of them."""
    bench.target.fail_on(step, nth, partial=partial)
    before = bench.manager.placement()
    swap = await bench.applied(GOAL)
    assert swap.state is SwapState.FAILED
    assert str(swap.error) == f"rank 1 failed in {step}"
    assert bench.target.experts == START
    assert bench.manager.placement() == before
    assert (swap.moves_done, swap.bytes_done, swap.revision) == (0, 0, 0)
    assert f"rank 1 failed in {step}" in bench.conditions["SWAP_ROLLED_BACK"]
    assert set(bench.conditions) == {"SWAP_ROLLED_BACK"}


async def test_condition_of_a_roll_back_ends_with_the_next_success(bench):
    """The operator need not wipe it away."""
    bench.target.fail_on("publish")
    await bench.applied(GOAL)
    assert bench.conditions
    await bench.applied(GOAL)
    assert bench.conditions == {}


async def test_roll_back_is_visible_while_it_runs(bench):
    """The swap carries its error and the daemon says what is being copied back."""
    bench.target.fail_on("publish", 2)
    abort = bench.target.hold("abort")
    swap = bench.apply(GOAL)
    await bench.target.reached("abort")
    running = bench.manager.swaps.get(swap.id)
    assert not running.state.terminal
    assert "rank 1 failed in publish" in str(running.error)
    assert "copied back" in bench.conditions["SWAP_ROLLING_BACK"]
    with pytest.raises(SwapNotCancellable, match="being rolled back"):
        bench.manager.swaps.cancel(swap.id)
    with pytest.raises(SwapInProgress):
        bench.apply(GOAL)
    abort.set()
    await bench.ended(swap)
    assert "SWAP_ROLLING_BACK" not in bench.conditions


@pytest.mark.parametrize("step", STEPS)
async def test_roll_back_that_fails_leaves_slots_empty_and_says_so(bench, step):
    """One batch was published, one copied; putting the first back fails: the CPU has those."""
    bench.target.fail_on("prepare", 3)
    # The third batch had no victim; the two others are put back, and the second time fails too.
    bench.target.fail_on(step, {"prepare": 5, "wait_copied": 3, "publish": 3}[step])
    swap = await bench.applied(GOAL)
    assert swap.state is SwapState.FAILED
    mapped = {expert for layer in bench.target.experts for expert in layer}
    assert bench.target.experts != START
    assert mapped <= {0, 1}
    assert "in no slot and the CPU computes them" in bench.conditions["SLOTS_EMPTY"]
    assert f"rank 1 failed in {step}" in bench.conditions["SLOTS_EMPTY"]


async def test_empty_slots_are_filled_by_the_next_apply(bench):
    """Asking for the committed placement again repairs it, from what is really mapped."""
    bench.target.fail_on("publish", 1)
    bench.target.fail_on("publish", 2)
    await bench.applied({1: (0, 4)})
    assert bench.target.experts == ((0,), (0, 1))
    assert bench.manager.placement().experts == START
    assert bench.conditions["SLOTS_EMPTY"]
    swap = await bench.applied({1: (0, 1)})
    assert swap.state is SwapState.SUCCEEDED
    assert bench.target.experts == START
    assert bench.conditions == {}


async def test_abort_that_fails_is_reported(bench):
    """Then nobody knows what the ranks hold, and the sentence says what to do."""
    bench.target.fail_on("publish", 1)
    bench.target.fail_on("abort", 1)
    swap = await bench.applied({1: (0, 4)})
    assert swap.state is SwapState.FAILED
    assert "restart the engine" in bench.conditions["SLOTS_EMPTY"]


async def test_error_that_no_target_should_raise_is_a_failed_swap(bench):
    """A bug in the bridge is rolled back like anything else and never leaves a swap open."""
    bench.target.fail_on("wait_copied", 2, error=RuntimeError("boom"))
    swap = await bench.applied(GOAL)
    assert swap.state is SwapState.FAILED
    assert "RuntimeError: boom" in str(swap.error)
    assert bench.target.experts == START


async def test_channel_that_is_closed_in_a_step_is_a_failed_swap(bench):
    """grpc.aio cancels calls of a closed channel; that must not look like our own cancellation."""
    bench.target.fail_on("wait_copied", 1, error=asyncio.CancelledError())
    swap = await bench.applied(GOAL)
    assert swap.state is SwapState.FAILED
    assert "channel to the engine was closed" in str(swap.error)


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("step", ["prepare", "wait_copied"])
async def test_cancel_before_committing_restores_the_old_placement(bench, step, batch):
    """At each step of each batch."""
    swap = bench.apply(GOAL)
    for number in range(1, batch + 1):
        gate = bench.target.hold(step)
        await bench.target.reached(step)
        if number == batch:
            bench.manager.swaps.cancel(swap.id)
            bench.manager.swaps.cancel(swap.id)
            bench.target._holds.clear()
        gate.set()
    swap = await bench.ended(swap)
    assert swap.state is SwapState.CANCELLED
    assert swap.error is None
    assert bench.target.experts == START
    assert bench.manager.placement().experts == START
    assert swap.moves_done == 0
    assert bench.conditions == {}


async def test_cancel_while_committing_is_refused(bench):
    """The last batch is being published: too late, and undo is named."""
    swap = bench.apply({1: (0, 4)})
    gate = bench.target.hold("publish")
    await bench.target.reached("publish")
    with pytest.raises(SwapNotCancellable, match="COMMITTING"):
        bench.manager.swaps.cancel(swap.id)
    gate.set()
    assert (await bench.ended(swap)).state is SwapState.SUCCEEDED


async def test_cancel_after_the_end_is_refused(bench):
    """Undo is named."""
    swap = await bench.applied(GOAL)
    with pytest.raises(SwapNotCancellable, match="undo"):
        bench.manager.swaps.cancel(swap.id)


async def test_unknown_swap_is_not_found(bench):
    """To read, to watch and to cancel."""
    for call in (bench.manager.swaps.get, bench.manager.swaps.watch, bench.manager.swaps.cancel):
        with pytest.raises(SwapNotFound, match="'nope'"):
            call("nope")


@pytest.mark.parametrize("step", STEPS)
async def test_engine_that_goes_away_ends_the_swap_at_once(bench, step):
    """Without waiting for the step, without a roll-back; reads go on, changes are refused."""
    bench.target.hold(step)
    swap = bench.apply(GOAL)
    await bench.target.reached(step)
    bench.manager.detach("The engine was killed.")
    swap = await bench.ended(swap)
    assert swap.state is SwapState.FAILED
    assert str(swap.error) == "The engine was killed."
    assert [name for name, _ in bench.target.calls][-1] == step
    assert bench.manager.placement().experts == START
    assert bench.conditions == {}
    with pytest.raises(EngineNotReady, match=r"The engine was killed\."):
        bench.apply(GOAL)


async def test_engine_that_goes_away_during_the_roll_back_ends_it(bench):
    """Nothing is left to put back, and the engine's end is what the operator must know."""
    bench.target.fail_on("publish", 1)
    bench.target.hold("abort")
    swap = bench.apply(GOAL)
    await bench.target.reached("abort")
    bench.manager.detach("The engine was killed.")
    assert str((await bench.ended(swap)).error) == "The engine was killed."


async def test_engine_that_is_felt_to_be_gone_before_it_is_known_says_why(bench):
    """Calls fail from a moment on; the supervisor learns the cause a little later."""
    bench.target.fail_on("publish", 1)
    bench.target.fail_on("abort", 1)
    swap = bench.apply({1: (0, 4)})
    await bench.target.reached("abort")
    asyncio.get_running_loop().call_later(0.3, bench.manager.detach, "The engine was killed.")
    swap = await bench.ended(swap)
    assert str(swap.error) == "The engine was killed."
    assert bench.conditions == {}


async def test_daemon_that_stops_ends_the_swap():
    """Leaving the manager leaves nothing running."""
    async with bench_of() as bench:
        bench.target.hold("wait_copied")
        swap = bench.apply(GOAL)
        await bench.target.reached("wait_copied")
    assert bench.manager.swaps.get(swap.id).state is SwapState.FAILED
    assert bench.manager.swaps.outcomes == {"FAILED": 1}


async def test_last_fifty_swaps_are_kept(bench):
    """Newest first; older ones are forgotten."""
    first = await bench.applied({1: (0, 4)})
    for turn in range(50):
        await bench.applied({1: (0, turn % 2 + 2)})
    assert len(bench.manager.swaps.all()) == 50
    with pytest.raises(SwapNotFound):
        bench.manager.swaps.get(first.id)
    assert bench.manager.swaps.outcomes == {"SUCCEEDED": 51}


@pytest.mark.parametrize(
    ("device", "rate", "expected"),
    [
        ("cpu", None, BatchLimits()),
        ("cuda", None, BatchLimits(1024, 3 << 30)),
        # 60 ms of copying at the rate that was asked for, and never less than the default.
        ("cuda", 20e9, BatchLimits(1024, int(1.2e9))),
        ("cuda", 1e9, BatchLimits(1024, BatchLimits().bytes)),
    ],
)
def test_what_an_operator_applies_goes_in_batches_of_tens_of_milliseconds(device, rate, expected):
    assert BatchLimits.of_operator(device, rate) == expected


def test_a_policy_moves_as_much_as_a_link_brings_in_a_step():
    """On the CPU, where copies take the cores' time, no more than before."""
    assert BatchLimits.of_policy("cpu", None) == BatchLimits()
    of_gpu = BatchLimits.of_policy("cuda", None)
    assert of_gpu.moves > BatchLimits().moves
    assert of_gpu.bytes < BatchLimits.of_operator("cuda", None).bytes
    assert BatchLimits.of_policy("cuda", 1e9).bytes == BatchLimits().bytes


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(8, [8]), (9, [4, 4, 1]), (20, [4, 4, 8, 4])],
)
def test_the_first_of_several_batches_is_half_of_one(count, sizes):
    """So that copies begin while the rest of them is prepared; a policy's swap stays one batch."""
    moves = [Move(1, None, expert) for expert in range(count)]
    batches = BatchLimits(moves=8).split(moves, 100)
    assert [len(batch) for batch in batches] == sizes
    assert [move for batch in batches for move in batch] == moves
    # The bytes count too, and a batch of few moves is not divided.
    assert [len(batch) for batch in BatchLimits(bytes=200).split(moves[:5], 100)] == [2, 2, 1]
