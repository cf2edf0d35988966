"""Random swaps with random accidents: what must hold after each, and at any moment."""

import asyncio
import random

import pytest

from ktd.errors import SwapNotCancellable
from ktd.placement.goals import ExplicitGoal
from ktd.placement.model import ModelShape
from ktd.placement.swap import BatchLimits, SwapState
from tests.placement.conftest import bench_of
from tests.placement.fake_target import STEPS

SHAPE = ModelShape((0, 2, 5), 12, (0, 4, 7), 10)


def _random_goal(generator):
    return ExplicitGoal(
        tuple(
            (layer, tuple(generator.sample(range(SHAPE.num_experts), generator.randint(0, slots))))
            for layer, slots in zip(SHAPE.moe_layers, SHAPE.slots, strict=True)
            if generator.random() < 0.7
        ),
        partial=True,
    )


@pytest.mark.parametrize("seed", range(8))
async def test_storm_of_swaps_failures_and_cancels(seed):
    """The fake ranks assert throughout that a slot that is being written is never mapped."""
    generator = random.Random(seed)  # repeatable accidents
    limits = BatchLimits(moves=generator.choice([1, 2, 5]))
    start = ((), (0, 1, 2), (3, 4))
    outcomes = set()
    async with bench_of(shape=SHAPE, start=start, limits=limits) as bench:
        for _ in range(150):
            before = bench.manager.placement()
            if generator.random() < 0.2:
                step = generator.choice(STEPS[:3])
                bench.target.fail_on(
                    step, generator.randint(1, 4), partial=generator.random() < 0.5
                )
            undo = bench.manager.history.undo_points and generator.random() < 0.2
            if undo:
                swap = bench.manager.undo(etag=before.etag)
            else:
                swap = bench.manager.apply(_random_goal(generator), etag=before.etag)
            if generator.random() < 0.2:
                for _ in range(generator.randint(0, 9)):
                    await asyncio.sleep(0)
                try:
                    bench.manager.swaps.cancel(swap.id)
                except SwapNotCancellable:
                    assert bench.manager.swaps.get(swap.id).state is not SwapState.STAGING or (
                        bench.manager.swaps.get(swap.id).error is not None
                    )
            swap = await bench.ended(swap)
            bench.target._failures.clear()
            outcomes.add(swap.state)
            after = bench.manager.placement()
            if swap.state is not SwapState.SUCCEEDED:
                assert after == before
            if "SLOTS_EMPTY" not in bench.conditions:
                assert bench.target.experts == after.experts
            mapped = [set(layer) for layer in bench.target.experts]
            wanted = [set(layer) for layer in after.experts]
            assert all(one <= other for one, other in zip(mapped, wanted, strict=True))
        final = await bench.ended(
            bench.manager.apply(ExplicitGoal(((2, (7, 8)), (5, ())), partial=True), etag=bench.etag)
        )
        assert final.state is SwapState.SUCCEEDED
        assert bench.target.experts == ((), (7, 8), ())
        assert bench.conditions == {}
    assert outcomes == {SwapState.SUCCEEDED, SwapState.FAILED, SwapState.CANCELLED}
