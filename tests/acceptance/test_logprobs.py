"""Answers agree with Transformers in float32 at every placement (invariant 4)."""

import asyncio
import statistics

import pytest

from tests.acceptance.agreement import error_of, require_close
from tests.acceptance.conftest import TOKENS
from tests.acceptance.storm import swapping
from tests.live import LiveDaemon

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("ratio", ["0", "0.37", "1"])
def test_logprobs_agree_with_the_reference_at_a_ratio(
    ratio, reference, stock_error, record_property
):
    """No, a third and all experts in slots give the same answers as everything in float32."""
    with LiveDaemon("--gpu-experts-ratio", ratio, *TOKENS) as daemon:
        error = error_of(daemon.http_url, reference)
        require_close(error, stock_error, record_property, f"ratio {ratio}")
        if ratio != "0.37":
            return
        error, swaps = asyncio.run(errors_while_swapping(daemon, reference))
        require_close(error, stock_error, record_property, f"during {swaps} swaps")
        assert swaps >= 20


async def errors_while_swapping(daemon, reference):
    """Mean over all runs of the three texts that at least twenty swaps went on beside."""
    errors = []
    async with swapping(daemon.socket) as storm:
        while storm.committed < 20 or not errors:
            errors.append(await asyncio.to_thread(error_of, daemon.http_url, reference))
        return statistics.mean(errors), storm.committed
