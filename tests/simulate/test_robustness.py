"""No figure of `adaptive` is tuned to one trace: drawn workloads, and every figure times two."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ktd.policy.settings import AdaptiveSettings
from ktd.simulate.runs import Question, answer, machine_of
from ktd.simulate.sources import read_workload
from tests.simulate import synthetic

ROOT = Path(__file__).resolve().parents[2]
QUESTION = Question(policy="adaptive", budget=0.25, machine=machine_of("cuda", 98_304, None))
FIGURES = (
    "patience", "horizon", "confidence", "min_dwell", "fit_half_life", "regime_half_life",
    "past_half_life", "persistence", "drift_excess", "drift_evidence", "prior_dwell",
)  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("make", "ratio", "times"),
    [
        (synthetic.stationary, 0.985, 1.3),
        (synthetic.shifting, 0.95, 1.3),
        (synthetic.turning, 0.92, 5.0),
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


def test_more_expensive_copies_are_made_less_often():
    recorded = read_workload(ROOT / "models/routing-trace.npz")
    found = [answer(recorded, replace(QUESTION, copy_cost=cost)) for cost in (0, 16, 64, 256)]
    moves = [one.replayed.moves for one in found]
    rates = [one.replayed.hit_rate for one in found]
    assert moves == sorted(moves, reverse=True)
    assert rates == sorted(rates, reverse=True)
