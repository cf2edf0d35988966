"""Eight streams and a thousand random swaps: nothing fails, nothing is lost, nothing changes."""

import asyncio

import aiohttp
import pytest

from ktd.client import KtdClient
from tests.acceptance.agreement import GreedyStreams
from tests.acceptance.conftest import TOKENS
from tests.acceptance.openai import stream
from tests.acceptance.reference import TEXTS
from tests.acceptance.storm import Storm
from tests.live import LiveDaemon
from tests.skips import two_ranks

pytestmark = pytest.mark.engine

SWAPS = 1000
STREAMS = 8
LENGTH = 96


def prompts_of(reference):
    """Eight different beginnings from the three held-out texts."""
    prompts = []
    for number in range(STREAMS):
        ids = reference.text(TEXTS[number % len(TEXTS)])
        start = 20 * (number // len(TEXTS))
        prompts.append(reference.tokenizer.decode(ids[start : start + 24]))
    return prompts


async def run_streams(url, prompts, until):
    """Streams every prompt again and again until ``until`` is done; at least once each."""
    results = [[] for _ in prompts]
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(timeout=timeout) as session:

        async def repeat(number):
            while not results[number] or not until.done():
                results[number].append(await stream(session, url, prompts[number], LENGTH))

        await asyncio.gather(*(repeat(number) for number in range(len(prompts))))
    return results


async def storm_and_streams(daemon, prompts):
    done = asyncio.get_running_loop().create_future()
    done.set_result(None)
    quiet = [runs[0] for runs in await run_streams(daemon.http_url, prompts, done)]
    async with KtdClient(daemon.socket) as client:
        storm = Storm(client, seed=7)
        swaps = asyncio.create_task(storm.run(SWAPS))
        stormy = await run_streams(daemon.http_url, prompts, swaps)
        await swaps
    return quiet, stormy, storm.committed


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param((), id="one-rank"),
        # Its ranks wait for each other in every layer: beside another engine that takes minutes.
        pytest.param(("--tp", "2"), id="two-ranks", marks=[two_ranks, pytest.mark.alone]),
    ],
)
def test_streams_do_not_notice_a_thousand_swaps(arguments, reference, stock_url):
    """Greedy output equals a quiet run's, or differs first where the reference is undecided too."""
    prompts = prompts_of(reference)
    with LiveDaemon("--gpu-experts-ratio", "0.37", *TOKENS, *arguments) as daemon:
        quiet, stormy, committed = asyncio.run(storm_and_streams(daemon, prompts))
    assert committed == SWAPS
    compare = GreedyStreams(reference, stock_url, prompts, [calm.ids for calm in quiet])
    runs = differing = 0
    for number, (calm, repeats) in enumerate(zip(quiet, stormy, strict=True)):
        assert calm.completion_tokens == len(calm.ids) == LENGTH
        for run in repeats:
            runs += 1
            assert run.finish_reason == "length"
            assert run.completion_tokens == len(run.ids) == LENGTH
            if compare.differs(number, run.ids):
                differing += 1
            else:
                assert run.text == calm.text
    print(
        f"{committed} swaps, {runs} streams, none failed; {differing} differ, each first where the"
        f" reference sees two tokens within 2 x {compare.error:.3f} of each other"
    )
