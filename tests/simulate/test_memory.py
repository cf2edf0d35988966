"""What a policy remembers of one workload does not spoil another, or not for long."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ktd.policy.adaptive import Adaptive
from ktd.policy.base import Observation
from ktd.simulate.replay import Replay
from ktd.simulate.runs import Question, answer, machine_of
from ktd.simulate.sources import read_workload
from ktd.simulate.workload import Phase, Workload, count, with_mixed
from tests.simulate import synthetic

ROOT = Path(__file__).resolve().parents[2]
QUESTION = Question(policy="adaptive", budget=0.25, machine=machine_of("cuda", 98_304, None))
SLOTS, EXPERTS = (8,) * 6, 32
PROMPT, ANSWER = 100, 23


@pytest.fixture(scope="module", name="whole")
def whole_() -> Workload:
    return read_workload(ROOT / "models/routing-trace.npz")


@pytest.fixture(scope="module", name="turns")
def turns_(whole: Workload) -> Workload:
    """The first 4,000 tokens of each text, then ``mixed``: mostly changes."""
    texts = [Phase(one.name, one.ids[:4000]) for one in whole.phases[:3]]
    return Workload(with_mixed(texts), EXPERTS)


def replayed(policy: Adaptive, workload: Workload, every: int) -> float:
    """The hit rate of a workload of prompts."""
    replay = Replay(workload, SLOTS, QUESTION.machine)
    return replay.policy(policy, every=every, prefill=True).hit_rate


def ask(policy: Adaptive, workload: Workload) -> None:
    """Sixteen short prompts that are answered, as between the runs of the acceptance test."""
    for begin in range(0, workload.phases[0].tokens, workload.phases[0].tokens // 16):
        ids = workload.phases[0].ids[begin : begin + PROMPT + ANSWER]
        prompt, spoken = count(ids[:PROMPT], EXPERTS), count(ids[PROMPT:], EXPERTS)
        policy.observe(Observation(spoken, ANSWER, prompt, PROMPT, 1))


@pytest.mark.parametrize("every", [64, 500])
def test_the_whole_trace_after_its_changes_is_as_good_as_alone(whole, turns, every):
    """Within a point: the first 8,000 of 80,000 tokens are spent on seeing that changes ended."""
    alone = replayed(Adaptive(SLOTS, EXPERTS), whole, every)
    policy = Adaptive(SLOTS, EXPERTS)
    replayed(policy, turns, every)
    assert replayed(policy, whole, every) >= alone - 0.01


@pytest.mark.parametrize("every", [64, 500])
def test_nor_do_a_few_answers_keep_it_from_learning_of_prompts(whole, turns, every):
    """Half a point more, for the first 2,000 tokens, in which decode is not known to have ended."""
    alone = replayed(Adaptive(SLOTS, EXPERTS), whole, every)
    policy = Adaptive(SLOTS, EXPERTS)
    replayed(policy, turns, every)
    ask(policy, turns)
    assert replayed(policy, whole, every) >= alone - 0.015


@pytest.mark.parametrize("every", [64, 500])
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_where_changes_end_the_best_set_is_found(seed, every):
    found = answer(synthetic.settling(seed), replace(QUESTION, every=every))
    assert found.replayed.hit_rates[2] >= 0.985 * found.best.hit_rates[2]
