"""Answers agree with Transformers in float32 at every placement (invariant 4)."""

import asyncio
import random
import statistics

import pytest

from ktd.client import KtdClient
from tests.acceptance.agreement import error_of, require_close
from tests.acceptance.conftest import TOKENS
from tests.acceptance.storm import swapping
from tests.live import LiveDaemon

pytestmark = pytest.mark.engine

PLACEMENTS = 6


@pytest.mark.parametrize("ratio", ["0", "0.37", "1"])
def test_logprobs_agree_with_the_reference_at_a_ratio(
    ratio, reference, stock_error, record_property
):
    """No, a third and all experts in slots give the same answers as everything in float32."""
    with LiveDaemon("--gpu-experts-ratio", ratio, *TOKENS) as daemon:
        if ratio != "0.37":
            error = error_of(daemon.http_url, reference)
            require_close(error, stock_error, record_property, f"ratio {ratio}")
            return
        errors = asyncio.run(errors_of_placements(daemon, reference))
        spread = f"{PLACEMENTS} placements, {min(errors):.4f} to {max(errors):.4f}"
        error = statistics.mean(errors)
        require_close(error, stock_error, record_property, f"ratio {ratio}: {spread}")
        error, swaps = asyncio.run(errors_while_swapping(daemon, reference))
        require_close(error, stock_error, record_property, f"during {swaps} swaps")
        assert swaps >= 20


async def errors_of_placements(daemon, reference):
    """Of several placements: each rounds otherwise, and a near-tie of the router shows in all."""
    errors, chance = [], random.Random(3)
    async with KtdClient(daemon.socket) as client:
        layers = list((await client.placement()).layers)
        for _ in range(PLACEMENTS):
            target = {of.layer: chance.sample(range(of.num_experts), of.slots) for of in layers}
            await client.apply_and_wait(layers=target)
            errors.append(await asyncio.to_thread(error_of, daemon.http_url, reference))
    return errors


async def errors_while_swapping(daemon, reference):
    """Mean over all runs of the three texts that at least twenty swaps went on beside."""
    errors = []
    async with swapping(daemon.socket) as storm:
        while storm.committed < 20 or not errors:
            errors.append(await asyncio.to_thread(error_of, daemon.http_url, reference))
        return statistics.mean(errors), storm.committed
