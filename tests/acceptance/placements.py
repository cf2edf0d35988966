"""Errors at several placements: what a test of placements looks at, not at the luck of one."""

from __future__ import annotations

import asyncio
import random
import statistics
from dataclasses import dataclass

from ktd.client import KtdClient
from tests.acceptance.agreement import error_of
from tests.acceptance.reference import Reference
from tests.live import LiveDaemon

PLACEMENTS = 6


@dataclass(frozen=True)
class PlacementErrors:
    """Mean absolute differences from a reference, one for each placement."""

    errors: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the placements: each rounds otherwise, and a near-tie of the router shows in all."""
        return statistics.mean(self.errors)

    def __str__(self) -> str:
        low, high = min(self.errors), max(self.errors)
        return f"{len(self.errors)} placements, {low:.4f} to {high:.4f}"


def errors_of_placements(daemon: LiveDaemon, reference: Reference) -> PlacementErrors:
    """Fills the slots at random, several times, and asks for the texts each time."""
    return asyncio.run(_errors(daemon, reference))


async def _errors(daemon: LiveDaemon, reference: Reference) -> PlacementErrors:
    errors, chance = [], random.Random(3)
    async with KtdClient(daemon.socket) as client:
        layers = list((await client.placement()).layers)
        for _ in range(PLACEMENTS):
            target = {of.layer: chance.sample(range(of.num_experts), of.slots) for of in layers}
            await client.apply_and_wait(layers=target)
            errors.append(await asyncio.to_thread(error_of, daemon.http_url, reference))
    return PlacementErrors(tuple(errors))
