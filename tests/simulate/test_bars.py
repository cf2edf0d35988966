"""What `adaptive` must reach on the recorded trace, with its defaults."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ktd.simulate.runs import Question, answer, machine_of
from ktd.simulate.sources import read_workload
from ktd.simulate.workload import Phase, Workload

ROOT = Path(__file__).resolve().parents[2]
QUESTION = Question(policy="adaptive", budget=0.25, machine=machine_of("cuda", 98_304, None))


@pytest.fixture(scope="module", name="recorded")
def recorded_() -> Workload:
    return read_workload(ROOT / "models/routing-trace.npz")


def test_the_clairvoyant_is_computed_as_the_issue_computes_it(recorded):
    found = answer(recorded, replace(QUESTION, policy="frequency"))
    assert [phase.name for phase in recorded.phases] == ["prose", "code", "docs", "mixed"]
    assert [phase.tokens for phase in recorded.phases] == [20_000] * 4
    assert found.best.hit_rates == pytest.approx((0.6595, 0.6330, 0.6007, 0.5347), abs=5e-5)
    assert found.best.moves == 100
    assert found.slots == (8,) * 6


def test_frequency_with_the_right_statistics_is_the_clairvoyant(recorded):
    found = answer(recorded, replace(QUESTION, policy="frequency"))
    assert found.replayed.hit_rates == found.best.hit_rates
    assert found.replayed.moves == found.best.moves
    assert found.ratio == 1.0


def test_adaptive_follows_the_shifts_and_moves_little(recorded):
    found = answer(recorded, QUESTION)
    assert found.ratio >= 0.988  # the bar is 0.985
    assert found.replayed.moves <= 2.9 * found.best.moves  # the bar is 3


def test_adaptive_with_free_copies_beats_every_static_set(recorded):
    found = answer(recorded, replace(QUESTION, copy_cost=0.0))
    assert found.ratio >= 1.01  # the bar is 1.00


@pytest.mark.parametrize("name", ["prose", "code", "docs", "shuffled"])
def test_adaptive_comes_to_rest_on_a_stationary_workload(recorded, name):
    chosen = next((phase for phase in recorded.phases if phase.name == name), None)
    if chosen is None:
        ids = recorded.phases[0].ids.copy()
        np.random.default_rng(5).shuffle(ids, axis=0)
        chosen = Phase(name, ids)
    found = answer(Workload((chosen,), 32), QUESTION)
    assert found.ratio >= 0.985  # the bar is 0.98
    assert found.late_share <= 0.01


def test_adaptive_is_better_than_kts_rule_at_a_fraction_of_the_bytes(recorded):
    found = answer(recorded, QUESTION)
    assert found.replayed.hit_rate > found.dynamic.hit_rate + 0.02
    assert found.replayed.moves < found.dynamic.moves / 5


@pytest.mark.parametrize(("budget", "ratio"), [(0.125, 0.98), (0.5, 0.985), (0.75, 0.985)])
def test_other_budgets(recorded, budget, ratio):
    assert answer(recorded, replace(QUESTION, budget=budget)).ratio >= ratio


def test_a_copy_rate_holds_moves_back(recorded):
    free = answer(recorded, QUESTION).replayed
    machine = replace(QUESTION.machine, copy_rate=1e6)
    held = answer(recorded, replace(QUESTION, machine=machine)).replayed
    assert held.moved_bytes <= 1e6 * held.seconds + 1e6
    assert held.moves < free.moves
    assert held.hit_rate < free.hit_rate
