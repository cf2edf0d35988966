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


async def test_prefill_and_decode_are_told_apart(daemon, client):
    """In the totals, in the window, and for each expert."""
    daemon.traffic.prefill(50)
    daemon.traffic.decode(10)
    stats = await client.stats()
    totals = stats.totals
    assert totals.prefill_gpu_pairs + totals.prefill_cpu_pairs == 50 * 2 * 4
    prefilled = [sum(layer.prefill_gpu) + sum(layer.prefill_cpu) for layer in stats.layers]
    assert prefilled == [50 * 2] * 4
    assert totals.prefill_hit_rate == totals.prefill_gpu_pairs / (50 * 2 * 4)
    on_gpu = totals.gpu_pairs - totals.prefill_gpu_pairs
    assert totals.decode_hit_rate == stats.window.decode_hit_rate == on_gpu / (10 * 2 * 4)


async def test_rates_come_when_they_are_asked_for(daemon, client):
    """Per layer, expert, tier and kind; everything counted is in them."""
    daemon.traffic.decode(100)
    assert not (await client.stats()).HasField("rates")
    rates = (await client.stats(with_rates=True)).rates
    assert rates.half_life.ToSeconds() == 60
    assert [layer.layer for layer in rates.layers] == [0, 1, 2, 3]
    for layer in rates.layers:
        assert len(layer.decode_cpu) == len(layer.prefill_gpu) == 8
        assert sum(layer.decode_gpu) + sum(layer.decode_cpu) > 0
        assert sum(layer.prefill_gpu) + sum(layer.prefill_cpu) == 0


async def test_a_window_holds_what_was_counted_in_it_only(daemon, client):
    """Totals stay those since the start."""
    daemon.traffic.prefill(40)
    daemon.stats._history.add(daemon.stats.sample(), last=True)
    await asyncio.sleep(0.02)
    daemon.traffic.decode(10)
    stats = await client.stats(window=0.01)
    assert (stats.window.prefill_tokens, stats.window.decode_tokens) == (0, 10)
    assert [sum(layer.gpu) + sum(layer.cpu) for layer in stats.layers] == [10 * 2] * 4
    assert stats.totals.prefill_tokens == 40


@pytest.mark.parametrize("window", [0.0, -1.0, 300.1])
async def test_a_window_that_cannot_be_is_refused(client, window):
    """Its value and the bounds are named."""
    with pytest.raises(InvalidArgument, match=f"window is {window:g} s.*at most 300 s"):
        await client.stats(window=window)


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
