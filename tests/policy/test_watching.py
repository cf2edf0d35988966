"""Pace, step times and the watchdog."""

from __future__ import annotations

import numpy as np

from ktd.placement.swap import BatchLimits
from ktd.policy.counted import Counted
from ktd.policy.pace import Pace
from ktd.policy.step_times import StepTime, StepTimes
from ktd.policy.watchdog import Watchdog

OLD, NEW = ((0, 1),), ((0, 2),)


def counted(steps, prefills=0, engine="e"):
    none = np.zeros((1, 2), np.int64)
    return Counted(engine, none, none, 2 * steps, 0, steps, prefills)


def test_copies_keep_to_the_byte_rate():
    pace = Pace(1000, BatchLimits(), now=0.0)
    assert pace.moves(100, 0.0) == 0
    assert pace.moves(100, 0.55) == 5
    pace.spent(5, 100, 0.55)
    assert pace.moves(100, 0.6) == 0
    moved = 0
    for tick in range(1, 1000):
        now = 0.6 + tick / 10
        moves = pace.moves(100, now)
        if moves:
            pace.spent(moves, 100, now)
            moved += moves
    assert moved * 100 <= 1000 * 100.5
    assert moved * 100 >= 900 * 100


def test_control_calls_keep_to_two_percent_of_the_schedulers_time():
    pace = Pace(1e12, BatchLimits(), now=0.0)
    swaps = 0
    for tick in range(1, 1001):
        now = tick / 10
        if pace.moves(1, now):
            pace.spent(1, 1, now)
            swaps += 1
    assert swaps * 0.010 <= 0.02 * 100
    assert swaps > 150


def test_calls_that_take_long_are_followed_by_a_longer_rest():
    """As they were measured; short ones count as what SGLang does around them."""
    pace = Pace(1e12, BatchLimits(), now=0.0)
    assert pace.moves(1, 1.0)
    pace.spent(1, 1, 1.0)
    pace.took(0.001)
    assert pace.moves(1, 1.4) == 0
    assert pace.moves(1, 1.5)
    pace.spent(1, 1, 1.5)
    pace.took(0.1)
    assert pace.moves(1, 6.4) == 0
    assert pace.moves(1, 6.6)


def test_one_swap_is_one_batch_and_a_large_expert_is_saved_for():
    assert Pace(1e12, BatchLimits(moves=32), 0.0).moves(1, 1.0) == 32
    assert Pace(1e12, BatchLimits(bytes=300), 0.0).moves(100, 1.0) == 3
    pace = Pace(10, BatchLimits(), 0.0)
    assert pace.moves(100, 9.0) == 0
    assert pace.moves(100, 10.5) == 1


def test_step_times_leave_out_prefill_and_the_ends_of_requests():
    times = StepTimes()
    found = []
    now, steps, prefills = 0.0, 0, 0
    for stretch in (0, 0, 10, 10, 10, 10, 10, 10, 10, 10, "prefill", 10, 10, 10, 0):
        now += 0.1
        if stretch == "prefill":
            prefills, steps = prefills + 1, steps + 3
        else:
            steps += stretch
        if (mean := times.update(now, counted(steps, prefills))) is not None:
            found.append(mean)
    assert len(found) == 1
    assert abs(found[0].seconds - 0.01) < 1e-9
    assert found[0].batch == 2


def test_an_engine_that_was_started_again_begins_anew():
    times = StepTimes()
    for tick in range(20):
        assert times.update(tick / 10, counted(10, engine=str(tick))) is None


def means(rng, seconds, count, batch=1.0, spread=0.02):
    return [StepTime(seconds * (1 + spread * rng.standard_normal()), batch) for _ in range(count)]


def fed(dog, stream):
    return [found for mean in stream if (found := dog.update(mean)) is not None]


def test_moves_that_make_steps_slower_are_taken_back():
    rng, dog = np.random.default_rng(0), Watchdog()
    fed(dog, means(rng, 0.010, 16))
    dog.moved(OLD)
    found = fed(dog, means(rng, 0.012, 6))
    assert [one.experts for one in found] == [OLD]
    assert found[0].after > found[0].before


def test_chance_is_no_reason():
    """Thresholds follow from the spread: the same loss in a noisy time is no proof."""
    rolled_back = 0
    for seed in range(200):
        rng, dog = np.random.default_rng(seed), Watchdog()
        fed(dog, means(rng, 0.010, 16, spread=0.15))
        dog.moved(OLD)
        rolled_back += len(fed(dog, means(rng, 0.010, 6, spread=0.15)))
    assert rolled_back <= 4


def test_faster_or_hardly_slower_steps_stay():
    rng, dog = np.random.default_rng(0), Watchdog()
    fed(dog, means(rng, 0.010, 16, spread=1e-4))
    dog.moved(OLD)
    assert fed(dog, means(rng, 0.0101, 6, spread=1e-4)) == []
    fed(dog, means(rng, 0.010, 16))
    dog.moved(OLD)
    assert fed(dog, means(rng, 0.008, 6)) == []


def test_a_change_of_the_workload_or_of_the_batch_ends_a_trial():
    rng, dog = np.random.default_rng(0), Watchdog()
    fed(dog, means(rng, 0.010, 16))
    dog.moved(OLD)
    dog.changed()
    assert fed(dog, means(rng, 0.020, 20)) == []
    dog = Watchdog()
    fed(dog, means(rng, 0.010, 16))
    dog.moved(OLD)
    assert fed(dog, means(rng, 0.020, 20, batch=8)) == []


def test_moves_in_a_row_are_one_trial_that_goes_back_to_the_first_placement():
    rng, dog = np.random.default_rng(0), Watchdog()
    fed(dog, means(rng, 0.010, 16))
    dog.moved(OLD)
    fed(dog, means(rng, 0.012, 4))
    dog.moved(NEW)
    assert fed(dog, means(rng, 0.012, 5)) == []
    assert [one.experts for one in fed(dog, means(rng, 0.012, 1))] == [OLD]
