"""How long planning takes for a model of 94 layers with 512 experts, as the daemon does it.

Each strategy plans through the placement manager: resolving the goal, the moves, bytes, hit rates
and the predicted steps before and after, and what a restart would give. A quarter of the experts
has a slot; counts follow a power law. Times are the processor's: a busy host does not count.

Usage: .venv/bin/python scripts/placement_speed.py [--rounds N]
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import time

import numpy as np

from ktd.placement.goals import StrategyGoal
from ktd.placement.manager import PlacementManager
from ktd.placement.model import ModelShape
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    asyncio.run(main(parser.parse_args().rounds))
