"""A manager over fake ranks, with a clock that tests move."""

from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from ktd.placement.goals import ExplicitGoal
from ktd.placement.manager import PlacementManager
from ktd.placement.model import ModelShape
from ktd.placement.swap import BatchLimits
from tests.placement.fake_target import FakeTarget

SHAPE = ModelShape(moe_layers=(1, 3), num_experts=6, slots=(2, 3), expert_bytes=10)
START = ((0, 1), (0, 1))


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self):
        return self.now


@dataclass
class Bench:
    """A manager with an engine attached, and what it said."""

    manager: PlacementManager
    target: FakeTarget
    clock: Clock
    conditions: dict = field(default_factory=dict)

    @property
    def etag(self):
        return self.manager.placement().etag

    def apply(self, layers, *, partial=True, **options):
        goal = ExplicitGoal(tuple(layers.items()), partial=partial)
        return self.manager.apply(goal, etag=options.pop("etag", self.etag), **options)

    async def applied(self, layers, **options):
        return await self.ended(self.apply(layers, **options))

    async def ended(self, swap):
        async for change in self.manager.swaps.watch(swap.id):
            swap = change
        await self.manager.swaps.settled()
        return swap


@asynccontextmanager
async def bench_of(*, shape=SHAPE, start=START, limits=None, **options):
    clock = Clock()
    conditions = {}

    def on_condition(reason, message):
        conditions.pop(reason, None)
        if message is not None:
            conditions[reason] = message

    manager = PlacementManager(
        on_condition=on_condition,
        clock=clock,
        limits=limits or BatchLimits(moves=1),
        **options,
    )
    async with manager:
        target = FakeTarget(shape, start)
        await manager.attach(target, shape, start)
        yield Bench(manager, target, clock, conditions)


@pytest.fixture
async def bench():
    async with bench_of() as bench:
        yield bench
