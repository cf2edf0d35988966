"""No figure of `adaptive` is tuned to one trace: drawn workloads, and every figure times two."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ktd.policy.adaptive import Adaptive
from ktd.policy.settings import AdaptiveSettings
from ktd.simulate.clairvoyant import clairvoyant
from ktd.simulate.replay import Replay
from ktd.simulate.runs import Question, answer, machine_of
from ktd.simulate.sources import read_workload
from tests.simulate import synthetic

ROOT = Path(__file__).resolve().parents[2]
QUESTION = Question(policy="adaptive", budget=0.25, machine=machine_of("cuda", 98_304, None))
FIGURES = (
    "patience", "horizon", "confidence", "min_dwell", "fit_half_life", "regime_half_life",
    "past_half_life", "persistence", "drift_excess", "drift_evidence", "prior_dwell",
    "steady_horizon", "batch_cost",
)  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("make", "ratio", "times"),
    [
        (synthetic.stationary, 0.985, 1.3),
        (synthetic.shifting, 0.95, 1.3),
        (synthetic.turning, 0.92, 5.0),
        (synthetic.settling, 0.945, 4.0),
        (synthetic.creeping, 0.93, 1.5),
        (synthetic.partly, 0.94, 1.4),
        (synthetic.wide, 0.96, 1.4),
    ],
)
def test_drawn_workloads(make, seed, ratio, times):
    found = answer(make(seed), QUESTION)
    assert found.ratio >= ratio
    assert found.replayed.moves <= times * found.best.moves


@pytest.mark.parametrize("factor", [0.5, 2.0])
@pytest.mark.parametrize("name", FIGURES)
def test_no_figure_is_critical(name, factor):
    recorded = read_workload(ROOT / "models/routing-trace.npz")
    value = getattr(AdaptiveSettings(), name) * factor
    settings = replace(AdaptiveSettings(), **{name: value})
    found = answer(recorded, replace(QUESTION, settings=settings))
    assert found.ratio >= 0.98
    assert found.replayed.moves <= 6 * found.best.moves


class Counting(Adaptive):
    """Counts the decisions that move something."""

    batches = 0

    def decide(self, mapped, limit=None):
        choices = super().decide(mapped, limit)
        self.batches += bool(choices)
        return choices


def test_where_nothing_changes_cheap_copies_come_to_rest_near_the_best_set():
    """With a GPU, where a copy costs little and the calls of a batch more."""
    workload, slots = synthetic.deep(), (90,) * 24
    learning = synthetic.workload(workload.phases[0].ids[:2000], experts=128)
    batches = []
    for replayed in (learning, workload):
        policy = Counting(slots, 128, AdaptiveSettings(usual_copy_cost=4.0))
        found = Replay(replayed, slots, QUESTION.machine).policy(policy)
        batches.append(policy.batches)
    assert found.hit_rate >= 0.985 * clairvoyant(workload, slots).hit_rate
    # Of the 62 decisions after 2,000 tokens.
    assert batches[1] - batches[0] <= 15


def test_more_expensive_copies_are_made_less_often():
    recorded = read_workload(ROOT / "models/routing-trace.npz")
    found = [answer(recorded, replace(QUESTION, copy_cost=cost)) for cost in (0, 16, 64, 256)]
    moves = [one.replayed.moves for one in found]
    rates = [one.replayed.hit_rate for one in found]
    assert moves == sorted(moves, reverse=True)
    assert rates == sorted(rates, reverse=True)
