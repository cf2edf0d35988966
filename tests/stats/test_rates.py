"""Decayed rates and windows: what they are, and what restarts and clocks do to them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ktd.stats.history import SampleHistory
from ktd.stats.model import Sample
from ktd.stats.rates import DecayedRates

NOTHING = Sample(
    time=100.0,
    start_time=100.0,
    engine_id="e1",
    moe_layers=(1,),
    num_experts=1,
    counts=np.zeros((2, 1, 1, 2), np.int64),
    decode_steps=0,
    prefill_steps=0,
    decode_tokens=0,
    prefill_tokens=0,
    cpu_weight_bytes=0,
    swap_bytes=0,
)


def counted(time: float, prefill: int = 0, decode: int = 0, **changes: object) -> Sample:
    """Prefill in a slot, decode on the CPU."""
    counts = np.array([[[[prefill, 0]]], [[[0, decode]]]])
    return replace(NOTHING, time=time, counts=counts, **changes)


@pytest.mark.parametrize("step", [0.5, 7.0, 60.0])
def test_steady_traffic_has_its_own_rate_however_often_it_is_sampled(step):
    """Ten pairs a second become ten pairs a second."""
    rates = DecayedRates(half_life=30.0)
    for i in range(1, int(600 / step) + 1):
        rates.update(counted(100.0 + i * step, prefill=int(10 * i * step)))
    found = rates.at(100.0 + int(600 / step) * step)
    assert found is not None
    assert found.per_second[0, 0, 0].tolist() == pytest.approx([10.0, 0.0], rel=1e-3)
    assert found.per_second[1].sum() == 0.0


def test_a_rate_halves_in_each_half_life_without_work():
    """Also without any sample."""
    rates = DecayedRates(half_life=30.0)
    rates.update(counted(101.0, decode=50))
    now, later = rates.at(101.0), rates.at(161.0)
    assert now is not None
    assert later is not None
    assert later.per_second[1, 0, 0, 1] == pytest.approx(now.per_second[1, 0, 0, 1] / 4)


def test_rates_outlive_a_restart_and_not_a_change_of_model():
    """Counts of the next engine begin at zero; its experts are the same ones."""
    rates = DecayedRates(half_life=30.0)
    rates.update(counted(110.0, decode=1000))
    rates.update(counted(120.0, decode=1, engine_id="e2", start_time=119.0))
    kept = rates.at(120.0)
    assert kept is not None
    assert kept.per_second[1, 0, 0, 1] > 1.0
    rates.update(replace(NOTHING, time=130.0, engine_id="e3", counts=np.zeros((2, 2, 4, 2))))
    other = rates.at(130.0)
    assert other is not None
    assert other.per_second.sum() == 0.0


def test_a_clock_that_is_set_back_invents_nothing():
    """The work is taken in when time goes on."""
    rates = DecayedRates(half_life=30.0)
    rates.update(counted(110.0, decode=10))
    rates.update(counted(105.0, decode=20))
    rates.update(counted(111.0, decode=20))
    found = rates.at(111.0)
    assert found is not None
    assert 0 < found.per_second.sum() < 20
    assert DecayedRates().at(1.0) is None


def test_a_window_begins_at_the_latest_sample_that_is_old_enough():
    """It is never shorter than asked for; before the first sample it is the engine's life."""
    history = SampleHistory(spacing=10.0, longest=60.0)
    for second in range(121):
        history.add(counted(100.0 + second, decode=second))
    now = counted(220.5, decode=121)
    begins = [history.before(now, seconds) for seconds in (1, 15, 60)]
    assert [begin.time for begin in begins if begin] == [210.0, 200.0, 160.0]
    assert history.before(now, 100) is None


def test_a_window_knows_the_last_sample_before_a_pause():
    """Otherwise the end of the work before it would count as done within it."""
    history = SampleHistory(spacing=10.0, longest=60.0)
    history.add(counted(100.0, decode=0))
    history.add(counted(105.0, decode=7), last=True)
    begin = history.before(counted(150.0, decode=7), 30.0)
    assert begin is not None
    assert begin.decode.sum() == 7


def test_a_window_within_a_pause_is_as_long_as_asked_for():
    """The last sample before the pause stands until something is counted again."""
    history = SampleHistory(spacing=10.0, longest=60.0)
    history.add(counted(105.0, decode=7), last=True)
    begin = history.before(counted(150.0, decode=7), 30.0)
    assert begin is not None
    assert begin.time == 120.0
    history.add(counted(150.0, decode=8))
    within, later = history.before(counted(155.0, decode=9), 10.0), counted(172.0, decode=30)
    assert within is not None
    assert (within.time, within.decode.sum()) == (145.0, 7)
    history.add(counted(160.0, decode=20))
    active = history.before(later, 15.0)
    assert active is not None
    assert (active.time, active.decode.sum()) == (150.0, 8)


def test_a_window_does_not_reach_into_another_engine():
    """Counts of two engines cannot be subtracted."""
    history = SampleHistory()
    history.add(counted(100.0, decode=50))
    later = counted(150.0, decode=3, engine_id="e2")
    assert history.before(later, 10.0) is None
    history.add(later)
    assert history.before(counted(170.0, decode=4, engine_id="e2"), 60.0) is None
