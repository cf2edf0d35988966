"""The hub: who is sampled, when, and what a slow listener loses."""

import asyncio
from contextlib import aclosing

import numpy as np
import pytest

from ktd.errors import EngineNotReady, InvalidArgument
from ktd.rankfile import RankFileWriter, Word, path_of
from ktd.stats.fanout import Fanout
from ktd.stats.hub import StatsHub
from ktd.stats.sampler import RankSampler


class Engine:
    """A rank file and the sampler of it."""

    def __init__(self, folder, engine_id):
        folder.mkdir(exist_ok=True)
        self.writer = RankFileWriter(path_of(folder, 0), rank=0, num_layers=1, num_experts=2)
        self.sampler = RankSampler(
            engine_id=engine_id, runtime_dir=folder, num_ranks=1, moe_layers=(4,)
        )

    def count(self, expert, tier, pairs):
        self.writer.counters.cast("Q")[4 + 2 * expert + tier] += pairs
        self.writer.words[Word.DECODE_TOKENS] += pairs


@pytest.fixture
async def hub():
    hub = StatsHub()
    yield hub
    hub.detach()


async def test_nothing_was_counted_before_the_first_engine(hub):
    """The refusal says what to wait for."""
    with pytest.raises(EngineNotReady, match="ktd status"):
        hub.snapshot()
    assert hub.counts() is None


async def test_counts_of_an_engine_that_ended_stay_readable(hub, tmp_path):
    """Its last sample is kept, but strategies no longer use it."""
    engine = Engine(tmp_path, "e1")
    hub.attach(engine.sampler)
    engine.count(1, 0, 5)
    engine.count(1, 1, 2)
    assert hub.counts() == [[0, 7]]
    hub.detach()
    assert hub.snapshot().totals.gpu_pairs == 5
    assert hub.counts() is None


async def test_stream_is_full_first_and_again_after_a_restart(hub, tmp_path):
    """Deltas in between; the engine's id tells the two engines apart."""
    first, second = Engine(tmp_path / "a", "e1"), Engine(tmp_path / "b", "e2")
    hub.attach(first.sampler)
    async with aclosing(hub.watch(0.1)) as stream:
        opening = await anext(stream)
        first.count(0, 1, 3)
        delta = await anext(stream)
        hub.attach(second.sampler)
        restarted = await anext(stream)
    assert [item.full for item in (opening, delta, restarted)] == [True, False, True]
    assert delta.layers[0].cpu == (3,)
    assert [item.sequence for item in (opening, delta, restarted)] == [1, 2, 3]
    assert restarted.engine_id == "e2"


async def test_stream_waits_for_an_engine(hub, tmp_path):
    """A monitor may be there before the engine is."""
    async with aclosing(hub.watch(0.1)) as stream:
        opening = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        assert not opening.done()
        hub.attach(Engine(tmp_path, "e1").sampler)
        assert (await opening).full


@pytest.mark.parametrize("interval", [0.0, 0.099, -1.0, float("nan")])
async def test_too_short_an_interval_is_refused(hub, interval):
    """100 ms is the floor; the value is named."""
    with pytest.raises(InvalidArgument, match=f"min_interval is {interval:g} s"):
        await anext(hub.watch(interval))


async def test_nobody_listening_means_nobody_sampling(hub, tmp_path):
    """The pump ends with its last listener."""
    hub.attach(Engine(tmp_path, "e1").sampler)
    async with aclosing(hub.watch(0.1)) as stream:
        await anext(stream)
        assert hub.listeners == 1
        assert [task.get_name() for task in asyncio.all_tasks()].count("stats-pump") == 1
    assert hub.listeners == 0
    await asyncio.sleep(0)
    assert [task.get_name() for task in asyncio.all_tasks()].count("stats-pump") == 0


async def test_slow_listener_gets_the_latest_sample_and_a_count_of_the_others():
    """Latest wins; a listener that keeps up loses nothing meanwhile."""
    samples = iter(range(1, 1000))
    fanout = Fanout(lambda: next(samples))
    with fanout.subscribe(0.001) as slow, fanout.subscribe(0.001) as fast:
        taken = [await fast.take() for _ in range(5)]
        late = await slow.take()
        assert fast.dropped == 0
        assert slow.dropped >= 3
    assert taken == sorted(taken)
    assert late > taken[3]


async def test_each_listener_keeps_its_own_interval():
    """One who wants a sample a minute is not sent one a millisecond because another wants that."""
    samples = iter(range(1, 10000))
    fanout = Fanout(lambda: next(samples))
    with fanout.subscribe(60.0) as calm, fanout.subscribe(0.001) as eager:
        for _ in range(10):
            await eager.take()
        await calm.take()
        assert calm.dropped == 0


async def test_counts_of_an_engine_that_ended_go_on_with_the_next(hub, tmp_path):
    """Strategies know the traffic; the statistics of the new engine begin at zero."""
    first, second = Engine(tmp_path / "a", "e1"), Engine(tmp_path / "b", "e2")
    hub.attach(first.sampler)
    first.count(1, 0, 5)
    hub.attach(second.sampler)
    second.count(0, 1, 2)
    assert hub.counts() == [[2, 5]]
    assert hub.snapshot().totals.gpu_pairs == 0


async def test_a_long_past_weighs_as_two_hundred_thousand_pairs(hub, tmp_path):
    """New traffic counts for more soon; an expert that was used at all stays known."""
    engine = Engine(tmp_path, "e1")
    hub.attach(engine.sampler)
    hub.use(np.array([[[10**9, 1]], [[10**9, 0]]]))
    assert hub.counts() == [[200_000, 1]]
    engine.count(1, 0, 50)
    assert hub.counts() == [[200_000, 51]]
    assert hub.known().tolist() == [[[100_000, 1]], [[100_000, 50]]]


async def test_used_counts_take_the_place_of_what_was_counted_before(hub, tmp_path):
    """Not of what comes after."""
    engine = Engine(tmp_path, "e1")
    hub.attach(engine.sampler)
    engine.count(0, 0, 7)
    hub.use(np.array([[[1, 1]], [[0, 0]]]))
    engine.count(1, 1, 3)
    assert hub.counts() == [[1, 4]]


async def test_rates_and_windows_follow_without_anybody_asking(hub, tmp_path):
    """The keeper looks once a second; rates of an idle engine fade."""
    engine = Engine(tmp_path, "e1")
    engine.writer.words[Word.DECODE_STEPS] += 1
    engine.count(1, 0, 50)
    hub.attach(engine.sampler)
    await asyncio.sleep(0.05)
    assert len(hub._history._samples) == 1
    rates = hub.rates()
    assert rates.per_second[1, 0].argmax() == 2
    hub.detach()
    assert hub.rates().per_second.sum() > 0
