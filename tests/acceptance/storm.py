"""Random swaps of a whole layer's slots, one after another, for as long as a test wants them."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path

from ktd.client import KtdClient


class Storm:
    """Applies random placements through the API and counts those that were committed."""

    def __init__(self, client: KtdClient, seed: int) -> None:
        self._client = client
        self._random = random.Random(seed)
        self._ends = False
        self.committed = 0

    async def run(self, swaps: int | None) -> None:
        """Applies ``swaps`` of them, or goes on until told to end."""
        layers = list((await self._client.placement()).layers)
        while not self._ends and (swaps is None or self.committed < swaps):
            layer = self._random.choice(layers)
            target = {layer.layer: self._random.sample(range(layer.num_experts), layer.slots)}
            await self._client.apply_and_wait(layers=target, partial=True)
            self.committed += 1

    def end(self) -> None:
        """Begins no other swap."""
        self._ends = True


@contextlib.asynccontextmanager
async def swapping(socket: Path, seed: int = 1) -> AsyncIterator[Storm]:
    """Random swaps run while the body does; the last of them has ended when it is left."""
    async with KtdClient(socket) as client:
        storm = Storm(client, seed)
        task = asyncio.create_task(storm.run(None))
        try:
            yield storm
        finally:
            # Not cancelled: the daemon would go on with a swap that the next test meets.
            storm.end()
            await task
