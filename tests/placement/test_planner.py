"""What a plan predicts: hit rates, time, speed, and what a restart would give."""

from dataclasses import replace

import pytest

from ktd.errors import PlacementDoesNotFit
from ktd.placement.cost import CostModel
from ktd.placement.goals import ExplicitGoal, StrategyGoal
from ktd.placement.model import ModelShape
from ktd.placement.strategies.base import Evidence
from tests.placement.conftest import START, bench_of

COUNTS = [[5, 1, 0, 0, 9, 5], [0, 0, 0, 10, 0, 0]]
COSTS = CostModel(
    cpu_bytes_per_second=100.0,
    cpu_layer_seconds=0.0,
    gpu_bytes_per_second=1e9,
    gpu_layer_seconds=0.0,
    link_bytes_per_second=5.0,
)


def evidence(**changes):
    return Evidence(**{"counts": COUNTS, "experts_per_token": 1, "costs": COSTS, **changes})


async def test_copy_time_is_bytes_over_the_rate():
    """20 bytes at 5 a second; the rate is that of the cost model."""
    async with bench_of(evidence=evidence) as bench:
        plan = bench.manager.plan(StrategyGoal("frequency"))
        assert plan.bytes == 20
        assert plan.copy_seconds == pytest.approx(4.0)


async def test_forecast_is_the_models_step():
    """By hand: 10 bytes an expert at 100 a second, for the share of pairs that misses."""
    async with bench_of(evidence=evidence) as bench:
        plan = bench.manager.plan(StrategyGoal("frequency"))
        assert plan.before.step_seconds == pytest.approx((14 / 20 + 1) / 10)
        assert plan.after.step_seconds == pytest.approx(6 / 20 / 10)
        assert plan.after.tokens_per_second == pytest.approx(200 / 6)
        assert plan.before.cpu_bytes == pytest.approx(17)


async def test_forecast_of_now_is_the_measured_step():
    """What experts do not explain is the rest of the step, and stays."""
    async with bench_of(evidence=lambda: evidence(step_seconds=1.0, batch=1)) as bench:
        plan = bench.manager.plan(StrategyGoal("frequency"))
        assert plan.before.step_seconds == pytest.approx(1.0)
        assert plan.after.step_seconds == pytest.approx(1.0 - 0.17 + 0.03)
        assert "other_step_seconds" not in "".join(plan.notes)
        assert "cpu_bytes_per_second" in "".join(plan.notes)


async def test_model_that_is_too_slow_is_made_faster_as_a_whole():
    """A measured step is never contradicted."""
    async with bench_of(evidence=lambda: evidence(step_seconds=0.017)) as bench:
        plan = bench.manager.plan(StrategyGoal("frequency"))
        assert plan.before.step_seconds == pytest.approx(0.017)
        assert plan.after.step_seconds == pytest.approx(0.003)


async def test_without_statistics_nothing_is_predicted():
    """And nothing is said of the figures that a prediction would rest on."""
    async with bench_of() as bench:
        plan = bench.manager.plan(StrategyGoal("random"))
        assert plan.before == plan.after
        assert plan.after.tokens_per_second == 0
        assert plan.notes == ()


async def test_all_figures_measured_need_no_note():
    """Only defaults are worth a sentence."""
    costs = CostModel(measured=CostModel().defaults())
    async with bench_of(evidence=lambda: evidence(costs=costs)) as bench:
        assert bench.manager.plan(StrategyGoal("uniform")).notes == ()


async def test_restart_offer_says_what_other_slots_would_give():
    """Global frequency would move a slot from the second layer to the first."""
    async with bench_of(evidence=evidence) as bench:
        plan = bench.manager.plan(StrategyGoal("frequency"))
        offer = plan.restart
        assert offer.shape.slots == (4, 1)
        assert offer.shape.total_slots == plan.shape.total_slots
        assert offer.experts == ((0, 1, 4, 5), (3,))
        assert offer.forecast.hit_rate == 1.0 > plan.after.hit_rate


async def test_no_restart_offer_where_it_would_change_nothing():
    """The slots are as the strategy wants them, or no strategy was asked."""
    async with bench_of(evidence=evidence) as bench:
        assert bench.manager.plan(ExplicitGoal(((1, (0,)),), partial=True)).restart is None
    even = [[1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0]]
    async with bench_of(counts=lambda: even) as bench:
        assert bench.manager.plan(StrategyGoal("frequency")).restart is None


async def test_finished_swap_is_a_measurement_of_copying():
    """Its bytes and its time; one that copied nothing says nothing."""
    seen = []
    async with bench_of(on_copied=lambda size, seconds: seen.append((size, seconds))) as bench:
        await bench.applied({1: (0, 5)})
        await bench.applied({1: (0,)})
        assert seen == [(10, 0.0)]


async def test_refused_plan_does_not_hold_the_policy(bench):
    """A mistyped name stops nobody."""
    bench.manager.policy_hold.set("adaptive")
    with pytest.raises(Exception, match="magic"):
        bench.manager.plan(StrategyGoal("magic"))
    assert bench.manager.policy_hold.complaint() == ""
    assert bench.manager.placement().experts == START


async def test_plans_are_judged_by_what_was_counted_of_late():
    """Strategies choose by all counts; the hit rate is that of the recent ones."""
    recent = [[0, 0, 0, 0, 0, 10], [0, 0, 0, 0, 0, 10]]
    async with bench_of(evidence=lambda: evidence(recent=recent)) as bench:
        plan = bench.manager.plan(StrategyGoal("frequency"))
        assert plan.experts == ((0, 4), (0, 1, 3))
        assert plan.after.hit_rate == 0
    nothing = [[0] * 6] * 2
    async with bench_of(evidence=lambda: evidence(recent=nothing)) as bench:
        assert bench.manager.plan(StrategyGoal("frequency")).after.hit_rate == 0.8


FULL = ModelShape((1, 3), 4, (4, 2), 10, full_stays_full=True)
WHOLE = ((0, 1, 2, 3), (0, 1))


async def test_full_layer_stays_full_where_it_has_no_cpu_path():
    """Refused by name, with the way out; a strategy leaves it full by itself."""
    async with bench_of(shape=FULL, start=WHOLE) as bench:
        with pytest.raises(PlacementDoesNotFit, match="Layer 1 has a slot for every expert, so it"):
            bench.apply({1: (0, 1)})
        await bench.applied({3: (2, 3), 1: (0, 1, 2, 3)})
    slow = CostModel(1.0, 0.0, 1.0, 0.0)
    counts = [[9, 9, 9, 9], [9, 9, 9, 9]]
    known = Evidence(counts=counts, costs=slow, experts_per_token=4)
    async with bench_of(shape=FULL, start=WHOLE, evidence=lambda: known) as bench:
        assert bench.manager.plan(StrategyGoal("latency")).experts == WHOLE


async def test_full_layer_may_be_emptied_where_the_cpu_can_take_over():
    """Without a GPU there is always a CPU path; an empty layer has no slots anywhere."""
    shape = replace(FULL, full_stays_full=False, slots=(4, 0))
    async with bench_of(shape=shape, start=((0, 1, 2, 3), ())) as bench:
        await bench.applied({1: (0, 1)})
        with pytest.raises(PlacementDoesNotFit, match="Layer 3 has 0 slots, but 1 experts"):
            bench.apply({3: (0,)})
