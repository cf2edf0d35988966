"""Planning a large model is a bounded amount of work: calls are counted, no clock is read."""

import cProfile
import pstats
import random

import pytest

from ktd.placement.goals import StrategyGoal
from ktd.placement.model import ModelShape
from ktd.placement.planner import Situation, plan_of
from ktd.placement.strategies.base import Evidence
from ktd.placement.strategies.registry import STRATEGIES
from tests.placement.conftest import bench_of

LAYERS, EXPERTS = 94, 512
# Moves are tuples of their own and random walks a list; the rest is in arrays.
MOST_CALLS_PER_EXPERT = 5


@pytest.mark.parametrize("name", STRATEGIES)
async def test_plan_of_a_large_model_takes_a_bounded_number_of_calls(name):
    """94 layers of 512 experts: scripts/placement_speed.py measures what that is in time."""
    generator = random.Random(1)  # repeatable data
    counts = [[generator.randrange(1000) for _ in range(EXPERTS)] for _ in range(LAYERS)]
    shape = ModelShape(tuple(range(LAYERS)), EXPERTS, (EXPERTS // 4,) * LAYERS, 1 << 20)
    start = (tuple(range(EXPERTS // 4)),) * LAYERS
    known = Evidence(counts=counts, batch=8, experts_per_token=10, step_seconds=0.1)
    async with bench_of(shape=shape, start=start) as bench:
        situation = Situation(bench.manager.placement(), start, known, now=0.0)
        profile = cProfile.Profile()
        plan = profile.runcall(plan_of, StrategyGoal(name), situation)
    assert plan.after.tokens_per_second > 0
    assert pstats.Stats(profile).total_calls < MOST_CALLS_PER_EXPERT * LAYERS * EXPERTS
