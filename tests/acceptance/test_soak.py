"""An hour of light work: no process grows in memory, threads or open files."""

import asyncio
import os
import statistics
import time
from pathlib import Path

import aiohttp
import pytest

from ktd.client import KtdClient
from tests.acceptance.openai import stream
from tests.acceptance.storm import Storm
from tests.live import LiveDaemon

pytestmark = [pytest.mark.engine, pytest.mark.soak, pytest.mark.timeout(0)]

SECONDS = float(os.environ.get("KTD_SOAK_SECONDS", "3600"))
EVERY = 10.0
# What the median of the last quarter may be above that of the second: page-level noise.
ALLOWED_SHARE = 0.01
ALLOWED_KIB = 4096


def sample(pid):
    """Resident KiB, threads, open files of one process."""
    status = Path(f"/proc/{pid}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    files = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    return int(fields["VmRSS"].split()[0]), int(fields["Threads"]), files, fields["Name"]


async def work(daemon, until):
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


async def watch(pids, until):
    """Samples every process until the time is over."""
    rows = []
    while time.monotonic() < until:
        rows.append([sample(pid) for pid in pids])
        await asyncio.sleep(EVERY)
    return rows


async def soak(daemon):
    until = time.monotonic() + SECONDS
    pids = sorted(daemon.processes())
    (swaps, requests), rows = await asyncio.gather(work(daemon, until), watch(pids, until))
    assert sorted(daemon.processes()) == pids, "a process came or went"
    return swaps, requests, rows


def test_an_hour_of_light_work_grows_nothing():
    """Median of the last quarter against the second: the first is warming up."""
    with LiveDaemon("--gpu-experts-ratio", "0.25", "--max-total-tokens", "16384") as daemon:
        swaps, requests, rows = asyncio.run(soak(daemon))
    quarter = len(rows) // 4
    print(f"{SECONDS:.0f} s, {requests} requests, {swaps} swaps")
    for index, (*_, name) in enumerate(rows[0]):
        early = rows[quarter : 2 * quarter]
        late = rows[3 * quarter :]
        for field, what in enumerate(("KiB resident", "threads", "open files")):
            before = statistics.median(row[index][field] for row in early)
            after = statistics.median(row[index][field] for row in late)
            allowed = max(ALLOWED_KIB, ALLOWED_SHARE * before) if field == 0 else 0
            print(f"{name:18} {what:13} {before:.0f} -> {after:.0f}")
            assert after <= before + allowed, f"{name} grew: {before} -> {after} {what}"
