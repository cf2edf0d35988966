"""KTransformers' rule, from its written semantics."""

from __future__ import annotations

import numpy as np

from ktd.policy.base import Observation, applied
from ktd.policy.dynamic import Dynamic


def prefill(counts, tokens, steps=1):
    counts = np.array(counts)
    return Observation(np.zeros_like(counts), 0, counts, tokens, steps)


def start():
    return np.array([[True, True, False, False, False]])


def test_a_long_prefill_takes_its_top_experts_and_nothing_else():
    policy = Dynamic([2], 100)
    policy.observe(prefill([[9, 1, 2, 8, 3]], 100))
    choices = policy.decide(start())
    assert [(choice.layer, choice.evict, choice.load) for choice in choices] == [(0, 1, 3)]
    assert choices[0].gain == 7
    after = applied(start(), choices)
    assert policy.decide(after) == []
    # No history: the next chunk decides alone.
    policy.observe(prefill([[0, 5, 6, 0, 0]], 100))
    assert np.flatnonzero(applied(after, policy.decide(after))[0]).tolist() == [1, 2]


def test_a_shorter_prefill_and_decode_never_count():
    policy = Dynamic([2], 100)
    policy.observe(prefill([[0, 0, 9, 9, 0]], 99))
    policy.observe(prefill([[0, 0, 9, 9, 0]], 150, steps=2))  # two chunks of 75
    policy.observe(Observation(np.array([[0, 0, 9, 9, 0]]), 500))
    assert policy.decide(start()) == []
    assert policy.facts()["longest_prefill_tokens"] == 99


def test_without_a_threshold_it_never_fires():
    policy = Dynamic([2], None)
    policy.observe(prefill([[0, 0, 9, 9, 0]], 1 << 20))
    assert policy.decide(start()) == []


def test_ties_go_to_the_lower_id():
    policy = Dynamic([2], 1)
    policy.observe(prefill([[0, 4, 4, 4, 4]], 8))
    assert np.flatnonzero(applied(start(), policy.decide(start()))[0]).tolist() == [1, 2]
    policy.observe(prefill([[0, 0, 0, 0, 0]], 8))
    assert np.flatnonzero(applied(start(), policy.decide(start()))[0]).tolist() == [0, 1]


def test_what_is_as_good_as_what_is_there_is_named_with_its_reason():
    policy = Dynamic([2], 1)
    policy.observe(prefill([[4, 4, 4, 1, 1]], 8))
    looked_at = policy.considered(start(), 5)
    assert [(choice.evict, choice.load, choice.gain) for choice in looked_at] == [(1, 2, 0.0)]
    assert "neither more" in looked_at[0].reason
