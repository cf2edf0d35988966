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
        self.committed = 0

    async def run(self, swaps: int | None) -> None:
        """Applies ``swaps`` of them, or goes on until cancelled."""
        layers = list((await self._client.placement()).layers)
        while swaps is None or self.committed < swaps:
            layer = self._random.choice(layers)
            target = {layer.layer: self._random.sample(range(layer.num_experts), layer.slots)}
            await self._client.apply_and_wait(layers=target, partial=True)
            self.committed += 1


@contextlib.asynccontextmanager
async def swapping(socket: Path, seed: int = 1) -> AsyncIterator[Storm]:
    """Random swaps run while the body does."""
    async with KtdClient(socket) as client:
        storm = Storm(client, seed)
        task = asyncio.create_task(storm.run(None))
        try:
            yield storm
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
