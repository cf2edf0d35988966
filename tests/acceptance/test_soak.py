"""Hours of light work, and minutes of swaps under load: no process grows in anything it takes."""

import asyncio
import os
import time

import aiohttp
import pytest

from ktd.client import KtdClient
from tests.acceptance.growth import Growth
from tests.acceptance.openai import stream
from tests.acceptance.storm import Storm, swapping
from tests.live import LiveDaemon

pytestmark = [pytest.mark.engine, pytest.mark.soak, pytest.mark.timeout(0)]

SECONDS = float(os.environ.get("KTD_SOAK_SECONDS", "3600"))
SWAP_SECONDS = float(os.environ.get("KTD_SOAK_SWAP_SECONDS", "480"))
STREAMS = 4
LENGTH = 128


async def light(daemon, until):
    """A request and a few swaps every five seconds."""
    async with KtdClient(daemon.socket) as client, aiohttp.ClientSession() as session:
        storm, requests = Storm(client, seed=3), 0
        while time.monotonic() < until:
            await storm.run(storm.committed + 5)
            done = await stream(session, daemon.http_url, f"In the year {requests}, ", 32)
            assert done.completion_tokens == 32
            requests += 1
            await asyncio.sleep(5)
        return storm.committed, requests


async def heavy(daemon, until):
    """Four streams without a pause, and one swap of a layer's slots after another."""

    async def repeat(number):
        requests = 0
        while time.monotonic() < until:
            prompt = f"In the year {requests} of stream {number}, "
            done = await stream(session, daemon.http_url, prompt, LENGTH)
            assert done.completion_tokens == LENGTH
            requests += 1
        return requests

    async with (
        swapping(daemon.socket, seed=5) as storm,
        aiohttp.ClientSession() as session,
    ):
        requests = await asyncio.gather(*(repeat(number) for number in range(STREAMS)))
        return storm.committed, sum(requests)


async def soak(daemon, work, seconds, every):
    until = time.monotonic() + seconds
    growth = Growth(sorted(daemon.processes()))
    (swaps, requests), _ = await asyncio.gather(
        work(daemon, until), growth.watch(until, every=every)
    )
    assert sorted(daemon.processes()) == growth.pids, "a process came or went"
    lines = list(growth.report())
    print(f"{seconds:.0f} s, {requests} requests, {swaps} swaps", *lines, sep="\n")
    assert swaps
    assert not [line for line in lines if line.startswith("GREW")]


@pytest.mark.parametrize(
    ("work", "seconds", "every"),
    [
        pytest.param(light, SECONDS, 10.0, id="light-work"),
        pytest.param(heavy, SWAP_SECONDS, 3.0, id="swaps-under-load"),
    ],
)
def test_no_process_grows(work, seconds, every):
    with LiveDaemon("--gpu-experts-ratio", "0.25", "--max-total-tokens", "16384") as daemon:
        asyncio.run(soak(daemon, work, seconds, every))
