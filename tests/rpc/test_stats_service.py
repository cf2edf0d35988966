"""StatsService over a real socket."""

import asyncio
from contextlib import aclosing

import pytest

from ktd.client import KtdClient
from ktd.errors import EngineNotReady, InvalidArgument
from tests.rpc.fake_daemon import fake_daemon


async def _nobody_listens(daemon):
    while daemon.stats.listeners:  # noqa: ASYNC110  # the server hears of it over the socket
        await asyncio.sleep(0.01)


async def test_snapshot_is_full(daemon, client):
    """Every layer and expert, totals and rates, and the placement's revision."""
    daemon.traffic.prefill(50)
    daemon.traffic.decode(10)
    snapshot = await client.stats()
    assert snapshot.full
    assert [layer.layer for layer in snapshot.layers] == [0, 1, 2, 3]
    assert all(len(layer.gpu) == len(layer.cpu) == 8 for layer in snapshot.layers)
    totals = snapshot.totals
    assert (totals.decode_tokens, totals.prefill_tokens) == (10, 50)
    assert totals.gpu_pairs + totals.cpu_pairs == 60 * 2 * 4
    assert totals.gpu_hit_rate == totals.gpu_pairs / (60 * 2 * 4)
    assert (snapshot.engine_id, snapshot.placement_revision) == ("fake-1", 1)
    assert snapshot.window.decode_tokens == 10


async def test_nothing_counted_is_a_rate_of_zero(client):
    """Not a division by zero."""
    assert (await client.stats()).totals.gpu_hit_rate == 0.0


async def test_stream_is_full_then_deltas(daemon, client):
    """Deltas name their experts and add up to the whole."""
    async with aclosing(client.watch_stats(0.1)) as stream:
        first = await anext(stream)
        daemon.traffic.decode(5)
        second = await anext(stream)
        idle = await anext(stream)
    assert (first.full, second.full, idle.full) == (True, False, False)
    assert [item.sequence for item in (first, second, idle)] == [1, 2, 3]
    assert second.window.decode_tokens == 5
    assert list(idle.layers) == []
    counts = {(layer.layer, expert): 0 for layer in first.layers for expert in range(8)}
    for layer in second.layers:
        assert len(layer.experts) > 0
        for expert, gpu, cpu in zip(layer.experts, layer.gpu, layer.cpu, strict=True):
            counts[layer.layer, expert] = gpu + cpu
    assert sum(counts.values()) == 5 * 2 * 4


async def test_snapshots_say_when_to_read_the_placement_again(client):
    """Each carries the revision."""
    async with aclosing(client.watch_stats(0.1)) as stream:
        assert (await anext(stream)).placement_revision == 1
        await client.apply_and_wait(strategy="random")
        assert (await anext(stream)).placement_revision == 2


async def test_too_short_an_interval_is_refused(client):
    """In the stream's status."""
    with pytest.raises(InvalidArgument, match="min_interval"):
        await anext(client.watch_stats(0.05))


async def test_stream_before_the_engine_is_refused_only_for_get(tmp_path):
    """Get says what is missing; a watch waits."""
    async with (
        fake_daemon(tmp_path, ready=False) as daemon,
        KtdClient(daemon.socket) as client,
    ):
        with pytest.raises(EngineNotReady):
            await client.stats()


async def test_counts_of_a_lost_engine_stay_readable(daemon, client):
    """Until the next one is there."""
    daemon.traffic.decode(3)
    daemon.engine_lost()
    assert (await client.stats()).totals.decode_tokens == 3


async def test_closed_stream_leaves_no_listener(daemon, client):
    """A client that stops listening is forgotten, so sampling ends."""
    async with aclosing(client.watch_stats(0.1)) as stream:
        await anext(stream)
        assert daemon.stats.listeners == 1
    await _nobody_listens(daemon)


async def test_lost_client_leaves_no_listener(daemon):
    """So is one whose connection breaks."""
    async with KtdClient(daemon.socket) as client:
        stream = client.watch_stats(0.1)
        await anext(stream)
        assert daemon.stats.listeners == 1
    await _nobody_listens(daemon)
    await stream.aclose()
