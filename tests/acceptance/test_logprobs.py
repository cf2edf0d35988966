"""Answers agree with Transformers in float32 at every placement (invariant 4)."""

import asyncio
import statistics

import pytest

from tests.acceptance.conftest import TOKENS
from tests.acceptance.openai import mean_error, prompt_logprobs
from tests.acceptance.reference import TEXTS
from tests.acceptance.storm import swapping
from tests.live import LiveDaemon

pytestmark = pytest.mark.engine

# The bar of the specification: beyond what unmodified SGLang loses to bfloat16, ten per cent.
FACTOR = 1.1
CEILING = 0.035


def errors_of(url, reference):
    """Mean absolute difference to the reference, text by text and over all."""
    values, wanted = [], []
    for name in TEXTS:
        ids = reference.text(name)
        values += prompt_logprobs(url, ids)
        wanted += reference.logprobs(ids)
    assert len(values) >= 3 * 200
    return mean_error(values, wanted)


@pytest.fixture(scope="module")
def stock_error(stock_url, reference):
    return errors_of(stock_url, reference)


def require_close(error, stock_error, record_property, what):
    record_property("mean_abs_logprob_error", error)
    print(f"{what}: mean |difference| {error:.4f}, unmodified SGLang {stock_error:.4f}")
    assert error <= FACTOR * stock_error
    assert error <= CEILING


@pytest.mark.parametrize("ratio", ["0", "0.37", "1"])
def test_logprobs_agree_with_the_reference_at_a_ratio(
    ratio, reference, stock_error, record_property
):
    """No, a third and all experts in slots give the same answers as everything in float32."""
    with LiveDaemon("--gpu-experts-ratio", ratio, *TOKENS) as daemon:
        error = errors_of(daemon.http_url, reference)
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
            errors.append(await asyncio.to_thread(errors_of, daemon.http_url, reference))
        return statistics.mean(errors), storm.committed
