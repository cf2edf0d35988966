"""How many prompts do not count before a long prefill is measured."""

import asyncio
from dataclasses import replace

import pytest

from ktd.bench.prefill import warm_ups
from ktd.bench.servers import RunningServer
from ktd.bench.timed_stream import TcpEndpoint
from tests.rpc.fake_daemon import fake_daemon


@pytest.mark.parametrize(
    ("threshold", "tokens", "several"),
    [
        (0, 8192, False),
        (1024, 1023, False),
        (1024, 1024, True),
    ],
)
async def test_where_experts_stream_the_share_of_the_cpu_settles_first(
    threshold, tokens, several, tmp_path
):
    async with fake_daemon(tmp_path) as daemon:
        (rank,) = daemon.engine.status().ranks
        daemon.engine.set(ranks=(replace(rank, prefill_threshold=threshold),))
        server = RunningServer("ktd", TcpEndpoint(1), socket=daemon.socket)
        assert (await asyncio.to_thread(warm_ups, server, tokens) > 10) == several


def test_of_another_server_one_prompt_does_not_count():
    assert warm_ups(RunningServer("stock", TcpEndpoint(1)), 8192) == 1
