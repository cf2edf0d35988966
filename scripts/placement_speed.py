"""How long planning takes for a model of 94 layers with 512 experts, as the daemon does it.

Each strategy plans through the placement manager: resolving the goal, the moves, bytes, hit rates
and the predicted steps before and after, and what a restart would give. A quarter of the experts
has a slot; counts follow a power law. Times are the processor's: a busy host does not count.

Then what swaps of 25 moves cost the daemon, one after the other, saved on disk with their undo
points, for 48 layers of 512 experts of which 60 % have a slot; the engine answers at once. Tokens
pass through the same interpreter: how long the event loop was held up is by the clock.

Usage: .venv/bin/python scripts/placement_speed.py [--rounds N]
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import structlog

from ktd.placement.goals import ExplicitGoal, StrategyGoal
from ktd.placement.manager import PlacementManager
from ktd.placement.model import ModelShape
from ktd.placement.store import PlacementStore
from ktd.placement.strategies.base import Evidence
from ktd.placement.strategies.registry import STRATEGIES, initial_placement, live_placement

LAYERS, EXPERTS, EXPERT_BYTES = 94, 512, 9 << 20


class NoTarget:
    """Planning asks nothing of the engine."""


def evidence() -> Evidence:
    """Skewed counts, and pairs for the strategy that wants them."""
    generator = random.Random(1)  # noqa: S311  # repeatable data
    counts = [
        [int(50 * generator.paretovariate(1.1)) for _ in range(EXPERTS)] for _ in range(LAYERS)
    ]
    pairs = np.random.default_rng(1).random((LAYERS, EXPERTS, EXPERTS), dtype=np.float32)
    return Evidence(
        counts=np.asarray(counts),
        recent=np.asarray(counts, float),
        pairs=pairs,
        batch=8.0,
        experts_per_token=10,
        expert_bytes=EXPERT_BYTES,
        step_seconds=0.05,
    )


def milliseconds(call: object, rounds: int) -> str:
    """Median and largest of ``rounds`` calls."""
    times = []
    for _ in range(rounds):
        began = time.process_time()
        call()  # type: ignore[operator]
        times.append(1000 * (time.process_time() - began))
    return f"{statistics.median(times):6.1f} {max(times):6.1f}"


async def main(rounds: int) -> None:
    """Prints a table."""
    known = evidence()
    budget = LAYERS * EXPERTS // 4
    start = initial_placement("uniform", LAYERS, EXPERTS, budget)
    slots = tuple(map(len, start.experts))
    shape = ModelShape(tuple(range(LAYERS)), EXPERTS, slots, EXPERT_BYTES)
    print(
        f"{LAYERS} layers x {EXPERTS} experts, {budget} slots; ms, median and largest of {rounds}"
    )
    print(f"{'strategy':14} {'initial':>13} {'live':>13} {'whole plan':>13}")
    async with PlacementManager(evidence=lambda: known) as manager:
        await manager.attach(NoTarget(), shape, start.experts)  # type: ignore[arg-type]
        for name in STRATEGIES:
            columns = (
                milliseconds(
                    lambda name=name: initial_placement(
                        name, LAYERS, EXPERTS, budget, evidence=known
                    ),
                    rounds,
                ),
                milliseconds(lambda name=name: live_placement(name, shape, evidence=known), rounds),
                milliseconds(lambda name=name: manager.plan(StrategyGoal(name)), rounds),
            )
            print(f"{name:14} {' '.join(columns)}")
    await swaps(rounds)


class Answers:
    """An engine that does at once what it is told."""

    async def prepare(self, *_: object, **__: object) -> None:
        """Nothing to wait for."""

    async def wait_copied(self, _batch_id: int) -> int:
        """Nor here."""
        return 0

    publish = abort = prepare


async def held_up(longest: list[float]) -> None:
    """Keeps the longest time, in seconds, that the event loop did not come here."""
    last = time.perf_counter()
    while True:
        await asyncio.sleep(0.0005)
        now = time.perf_counter()
        longest[0] = max(longest[0], now - last - 0.0005)
        last = now


async def swaps(rounds: int) -> None:
    """Prints what a swap costs once as many undo points are kept as ever are."""
    layers, moves, kept = 48, 25, 20
    slots = int(0.6 * EXPERTS)
    shape = ModelShape(tuple(range(layers)), EXPERTS, (slots,) * layers, EXPERT_BYTES)
    start = (tuple(range(slots)),) * layers
    cpu, blocked, longest = [], [], [0.0]
    beat = asyncio.create_task(held_up(longest))
    with tempfile.TemporaryDirectory() as folder:
        async with PlacementManager(store=PlacementStore(Path(folder))) as manager:
            await manager.attach(Answers(), shape, start)
            for number in range(kept + rounds):
                layer, first = number % layers, moves * (number // layers)
                now = set(manager.placement().experts[layer])
                now -= set(range(first, first + moves))
                now |= set(range(slots + first, slots + first + moves))
                goal = ExplicitGoal(((layer, tuple(sorted(now))),), partial=True)
                longest[0], began = 0.0, time.process_time()
                manager.apply(goal, etag=manager.placement().etag)
                await manager.swaps.settled()
                if number >= kept:
                    cpu.append(1000 * (time.process_time() - began))
                    blocked.append(1000 * longest[0])
            size = (Path(folder) / "placement.json").stat().st_size
    beat.cancel()
    print(
        f"a swap of {moves}: {statistics.median(cpu):.1f} ms, {max(cpu):.1f} at most; the loop was "
        f"held up for {statistics.median(blocked):.1f} ms, {max(blocked):.1f} at most; "
        f"{size / 1e3:.0f} KB"
    )


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    asyncio.run(main(parser.parse_args().rounds))
