"""The parts of the forecast, each against a truth that is known."""

from __future__ import annotations

import numpy as np
import pytest

from ktd.policy.drift import DriftDetector, ShiftClock
from ktd.policy.forecast import Forecaster
from ktd.policy.prefill_weight import PrefillWeight
from ktd.policy.recurrence import Recurrence
from ktd.policy.settings import AdaptiveSettings
from ktd.policy.windows import BestWindow, DecayedCounts, log_likelihood


def test_counts_weigh_half_after_a_half_life():
    counts = DecayedCounts((100.0,), 1, 2)
    counts.add(np.array([[8.0, 0.0]]), 10)
    counts.add(np.array([[0.0, 0.0]]), 100)
    assert counts.counts[0, 0, 0] == pytest.approx(4.0)
    assert counts.tokens[0] == pytest.approx(105.0)


def test_the_window_that_forecasts_best_is_believed():
    rng = np.random.default_rng(0)
    best = BestWindow((64.0, 4096.0), 512.0, 1, 8)
    shares = rng.dirichlet(np.ones(8))
    for _ in range(100):
        chunk = rng.multinomial(200, shares)[None, :].astype(float)
        best.judge(log_likelihood(best.windows.shares(), chunk), 64)
        best.windows.add(chunk, 64)
    assert best.weights()[1] > 0.9
    for _ in range(3):
        chunk = rng.multinomial(200, shares[::-1])[None, :].astype(float)
        best.judge(log_likelihood(best.windows.shares(), chunk), 64)
        best.windows.add(chunk, 64)
    assert best.weights()[0] > 0.9


def test_drift_needs_more_than_one_small_excess_and_begins_anew():
    drift = DriftDetector(0.06, 0.3)
    assert not drift.update(0.2, 64)
    assert not drift.update(-0.2, 64)
    assert [drift.update(0.2, 64) for _ in range(3)] == [False, False, True]
    assert not drift.update(0.2, 64)
    # A long prefill is one subject, however many tokens it has.
    assert not DriftDetector(0.06, 0.3).update(0.1, 100_000)


def test_the_dwell_follows_the_last_changes():
    clock = ShiftClock(2048, 4)
    assert clock.dwell(0) == 2048
    assert clock.dwell(20_000) == 22_048
    for turn in range(1, 9):
        clock.shifted(20_000 + 500 * turn)
    assert 500 < clock.dwell(24_100) < 1300
    assert clock.since(24_100) == 100
    assert clock.dwell(60_000) > 5000


def test_a_state_that_outlasts_all_before_it_is_expected_to_last_as_long_again():
    clock = ShiftClock(2048, 4)
    for turn in range(1, 21):
        clock.shifted(500 * turn)
    assert clock.dwell(10_500) < 1500  # no longer than the others yet
    for lasted in (10_000, 40_000):
        assert clock.dwell(10_000 + lasted) == pytest.approx(lasted, rel=0.25)
    # What it was before it settled counts no more, and what turns anew is believed as before.
    clock.shifted(50_000)
    assert clock.dwell(50_100) > 10_000
    for turn in range(1, 5):
        clock.shifted(50_000 + 500 * turn)
    assert 500 < clock.dwell(52_100) < 2500


def test_the_past_is_trusted_where_it_comes_back():
    rng = np.random.default_rng(0)
    states = rng.dirichlet(np.ones(16) * 0.3, size=(3, 2))
    past = states.mean(axis=0)
    back, away = Recurrence(), Recurrence()
    for turn in range(4):
        for recurrence, share in ((back, states[turn % 3]), (away, rng.permutation(past.T).T)):
            other = rng.permutation(16)
            chosen = share if recurrence is back else share[:, other]
            recurrence.shifted(past)
            for _ in range(8):
                chunk = np.stack([rng.multinomial(200, row) for row in chosen]).astype(float)
                recurrence.update(chunk, 64, 1.0)
    assert back.trust > 0.6
    assert away.trust < 0.4


def test_a_change_is_seen_and_the_forecast_follows():
    rng = np.random.default_rng(0)
    forecaster = Forecaster(AdaptiveSettings(), 4, 16)
    before, after = rng.dirichlet(np.ones(16) * 0.5, size=(2, 4))

    def tell(shares, chunks):
        for _ in range(chunks):
            chunk = np.stack([rng.multinomial(128, row) for row in shares]).astype(float)
            forecaster.update(chunk, 64)

    tell(before, 100)
    assert forecaster.shifts.count == 0
    tell(after, 8)
    assert forecaster.shifts.count == 1
    scores = forecaster.over(64).scores
    assert np.abs(scores - 2 * after).mean() < np.abs(scores - 2 * before).mean() / 3


def test_counts_that_come_in_bursts_are_known_less_well():
    rng = np.random.default_rng(0)
    steady, bursty = (Forecaster(AdaptiveSettings(), 2, 16) for _ in range(2))
    shares = np.full((2, 16), 1 / 16)
    for _ in range(200):
        chunk = np.stack([rng.multinomial(128, row) for row in shares]).astype(float)
        steady.update(chunk, 64)
        few = np.stack([rng.multinomial(32, row) for row in shares]).astype(float)
        bursty.update(few * 4, 64)  # every choice is made four times in a row
    assert steady.dispersion == pytest.approx(1, abs=0.2)
    assert bursty.dispersion > 2


def test_prefill_weighs_as_decode_at_most():
    weight = PrefillWeight()
    assert weight.update(0, 4000) == 1.0
    for _ in range(20):
        weight.update(100, 1900)
    assert weight.weight == pytest.approx(100 / 1900, rel=0.2)
    assert PrefillWeight().update(100, 50) == 1.0


def prompts(weight, times, tokens=500):
    """Chunks of prompts; the weight of the last one."""
    for _ in range(times):
        last = weight.update(0, tokens)
    return last


def answers(weight, times, prompt, decoded):
    """Requests one after the other."""
    for _ in range(times):
        weight.update(0, prompt)
        weight.update(decoded, 0)


def test_prompts_count_in_full_once_decode_has_ended():
    """A few short answers do not keep a policy from learning of the prompts that follow them."""
    weight = PrefillWeight()
    weight.update(23, 0)
    prompts(weight, 32)
    answers(weight, 16, 100, 23)
    assert weight.update(0, 1000) < 0.3
    assert prompts(weight, 4) == 1.0
    # It comes back, and is not drowned.
    answers(weight, 16, 300, 64)
    assert weight.update(0, 300) < 0.3


def test_that_decode_ends_is_seen_again():
    """A pause that was an end is no usual one; the share of decode is far from gone after it."""
    weight = PrefillWeight()
    answers(weight, 200, 200, 200)
    for _ in range(2):
        assert prompts(weight, 61) == 1.0
        weight.update(30, 0)
        answers(weight, 4, 100, 30)
    # Prompts that are longer for good become usual.
    for _ in range(8):
        prompts(weight, 20)
        weight.update(30, 0)
    assert prompts(weight, 21) < 0.3


def test_decode_has_not_ended_while_prompts_are_as_long_as_usual():
    """Drawn from a wide distribution, decode keeps the part that its share gives it."""
    rng = np.random.default_rng(0)
    weight = PrefillWeight()
    decoded = learned = 0.0
    for tokens in rng.lognormal(np.log(4000), 1.0, 500):
        for begin in range(0, int(tokens), 2048):
            part = min(2048, int(tokens) - begin)
            learned += weight.update(0, part) * part
        for _ in range(4):
            weight.update(64, 0)
            decoded += 64
    assert decoded > 0.8 * learned
    assert weight.update(0, 16_384) < 0.3  # one long chunk


def test_a_long_chunk_is_a_change_at_once():
    rng = np.random.default_rng(0)
    before, after = rng.dirichlet(np.ones(16) * 0.5, size=(2, 4))
    forecaster = Forecaster(AdaptiveSettings(), 4, 16)

    def tell(shares, chunks):
        for _ in range(chunks):
            chunk = np.stack([rng.multinomial(1000, row) for row in shares]).astype(float)
            forecaster.update(chunk, 500)

    tell(before, 20)
    assert forecaster.shifts.count == 0
    tell(after, 1)
    assert forecaster.shifts.count == 1
    tell(after, 20)
    assert forecaster.shifts.count == 1
