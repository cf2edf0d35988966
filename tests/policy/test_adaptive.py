"""What `adaptive` does with what it is told."""

from __future__ import annotations

import numpy as np
import pytest

from ktd.errors import InvalidArgument
from ktd.policy.adaptive import Adaptive
from ktd.policy.base import Observation, applied
from ktd.policy.settings import AdaptiveSettings

LAYERS, EXPERTS = 3, 16


def mapped_of(slots, experts=EXPERTS):
    return np.arange(experts)[None, :] < np.array(slots)[:, None]


def traffic(rng, weights, tokens=64, top_k=3):
    """Counts of ``tokens`` tokens that choose by ``weights`` ``[layers, experts]``."""
    noise = rng.gumbel(size=(tokens, *weights.shape)) + np.log(weights)
    chosen = np.argpartition(-noise, top_k, axis=2)[:, :, :top_k]
    counts = np.zeros(weights.shape, np.int64)
    for layer in range(weights.shape[0]):
        counts[layer] = np.bincount(chosen[:, layer].ravel(), minlength=weights.shape[1])
    return Observation(counts, tokens)


def skewed(rng, layers=LAYERS, experts=EXPERTS):
    weights = 1.0 / np.arange(1, experts + 1)
    return np.stack([weights[rng.permutation(experts)] for _ in range(layers)])


def followed(policy, mapped, rng, weights, chunks):
    """The placement after so many chunks, and all that was chosen on the way."""
    choices = []
    for _ in range(chunks):
        policy.observe(traffic(rng, weights))
        chosen = policy.decide(mapped)
        mapped = applied(mapped, chosen)
        choices += chosen
    return mapped, choices


def test_it_finds_the_most_used_experts():
    rng = np.random.default_rng(1)
    weights = skewed(rng)
    mapped, choices = followed(Adaptive([4] * 3, EXPERTS), mapped_of([4] * 3), rng, weights, 100)
    for layer in range(LAYERS):
        best = set(np.argsort(-weights[layer])[:3])
        assert best <= set(np.flatnonzero(mapped[layer]))
    assert all(choice.gain > choice.cost + choice.noise for choice in choices)


@pytest.mark.parametrize("seed", range(8))
def test_slots_are_never_exceeded_and_always_filled(seed):
    rng = np.random.default_rng(seed)
    slots = [0, 5, EXPERTS]
    policy, mapped = Adaptive(slots, EXPERTS), mapped_of(slots)
    mapped[1, 2] = False  # a slot that a failed swap left empty
    for _ in range(40):
        policy.observe(traffic(rng, skewed(rng)))
        choices = policy.decide(mapped)
        assert all(choice.layer == 1 for choice in choices)
        assert all(not mapped[choice.layer, choice.load] for choice in choices)
        mapped = applied(mapped, choices)
        assert (mapped.sum(axis=1) <= slots).all()
    assert mapped.sum(axis=1).tolist() == slots


def test_the_same_input_has_the_same_answer():
    runs = []
    for _ in range(2):
        rng = np.random.default_rng(3)
        runs.append(followed(Adaptive([4] * 3, EXPERTS), mapped_of([4] * 3), rng, skewed(rng), 50))
    assert runs[0][1] == runs[1][1]
    assert (runs[0][0] == runs[1][0]).all()


def test_names_of_experts_do_not_matter():
    """Permuting experts permutes the answer."""
    order = np.random.default_rng(9).permutation(EXPERTS)
    plain, permuted = (Adaptive([4] * 3, EXPERTS) for _ in range(2))
    here = mapped_of([4] * 3)
    there = here[:, order]
    rng = np.random.default_rng(4)
    weights = skewed(rng)
    for _ in range(60):
        seen = traffic(rng, weights)
        plain.observe(seen)
        permuted.observe(Observation(seen.decode[:, order], seen.decode_tokens))
        here = applied(here, plain.decide(here))
        there = applied(there, permuted.decide(there))
    assert (here[:, order] == there).all()


def test_a_limit_takes_the_most_useful_and_the_rest_follows():
    rng = np.random.default_rng(1)
    weights = skewed(rng)
    free, held = (Adaptive([4] * 3, EXPERTS) for _ in range(2))
    start = mapped_of([4] * 3)
    for _ in range(20):
        seen = traffic(rng, weights)
        free.observe(seen)
        held.observe(seen)
    everything, first = free.decide(start), held.decide(start, 2)
    assert first == everything[:2]
    rest = held.decide(applied(start, first), None)
    assert {(choice.layer, choice.load) for choice in (*first, *rest)} == {
        (choice.layer, choice.load) for choice in everything
    }
    assert held.decide(start, 0) == []


def test_what_was_dropped_is_decided_again():
    rng = np.random.default_rng(1)
    weights = skewed(rng)
    policy, mapped = Adaptive([4] * 3, EXPERTS), mapped_of([4] * 3)
    for _ in range(20):
        policy.observe(traffic(rng, weights))
    first = policy.decide(mapped)
    assert first
    assert not policy.decide(mapped)  # they count as moved
    policy.dropped()  # of a decision on nothing
    assert not policy.decide(mapped)
    policy, mapped = Adaptive([4] * 3, EXPERTS), mapped_of([4] * 3)
    for _ in range(20):
        policy.observe(traffic(rng, weights))
    first = policy.decide(mapped)
    policy.dropped()
    assert policy.decide(mapped) == first


def test_what_was_just_moved_stays():
    rng = np.random.default_rng(1)
    weights = skewed(rng)
    policy = Adaptive([4] * 3, EXPERTS, AdaptiveSettings(min_dwell=640))
    mapped = mapped_of([4] * 3)
    last = {}
    tokens = 0
    for chunk in range(120):
        policy.observe(traffic(rng, weights if chunk % 20 < 10 else weights[:, ::-1]))
        tokens += 64
        for choice in policy.decide(mapped):
            for expert in (choice.evict, choice.load):
                assert tokens - last.get((choice.layer, expert), -640) >= 640
                last[choice.layer, expert] = tokens
            mapped = applied(mapped, [choice])
    assert len(last) > 10


def test_a_copy_cost_that_never_pays_moves_nothing():
    rng = np.random.default_rng(1)
    policy = Adaptive([4] * 3, EXPERTS, AdaptiveSettings(copy_cost=1e9))
    assert followed(policy, mapped_of([4] * 3), rng, skewed(rng), 30)[1] == []


def test_every_candidate_that_is_not_moved_has_a_reason():
    rng = np.random.default_rng(1)
    policy = Adaptive([4] * 3, EXPERTS)
    mapped, _ = followed(policy, mapped_of([4] * 3), rng, skewed(rng), 6)
    looked_at = policy.considered(mapped, 50)
    assert looked_at
    assert all(choice.reason for choice in looked_at)
    assert {choice.reason for choice in looked_at} & {
        "The gain does not pay for the copy.",
        "The gain is not sure enough: counts vary by that much.",
    }


def test_exchanges_wait_until_all_of_them_are_worth_a_batch():
    """Nothing is moved for a little, and what waits says so; with free copies nothing waits."""
    rng = np.random.default_rng(1)
    weights, start = skewed(rng), mapped_of([4] * 3)
    patient, free = (
        Adaptive([4] * 3, EXPERTS, AdaptiveSettings(batch_cost=1e6, copy_cost=cost))
        for cost in (None, 0.0)
    )
    assert followed(patient, start, rng, weights, 30)[1] == []
    assert {choice.reason for choice in patient.considered(start, 4)} == {
        "It pays, but what pays now brings less together than a swap costs; it waits for more."
    }
    # Nine pairs of each token, in three layers of three.
    assert patient.facts()["batch_cost_pairs"] == 9e6
    assert followed(free, start, rng, weights, 30)[1]
    assert free.facts()["batch_cost_pairs"] == 0


def test_where_nothing_changes_cheap_exchanges_are_judged_for_longer_and_more_carefully():
    rng = np.random.default_rng(1)
    weights = skewed(rng)
    policy = Adaptive([4] * 3, EXPERTS, AdaptiveSettings(usual_copy_cost=4.0))
    mapped, _ = followed(policy, mapped_of([4] * 3), rng, weights, 4)
    early = policy.horizon
    mapped, _ = followed(policy, mapped, rng, weights, 100)
    lasting = min(policy.facts()[name] for name in (
        "window_half_life_tokens", "expected_dwell_tokens"
    ))  # fmt: skip
    assert early < policy.horizon == pytest.approx(lasting / 2)
    for _ in range(20):  # another workload
        policy.observe(traffic(rng, weights[:, ::-1]))
    assert policy.shifts
    assert policy.horizon < lasting / 2


def test_before_anything_was_seen_nothing_is_moved():
    policy = Adaptive([4] * 3, EXPERTS)
    assert policy.decide(mapped_of([4] * 3)) == ()
    assert policy.considered(mapped_of([4] * 3), 5) == ()
    assert policy.facts()["tokens_seen"] == 0


def test_prompts_do_not_drown_decode():
    """A hundred times more prefill of another kind does not decide."""
    rng = np.random.default_rng(2)
    decoded, prompts = skewed(rng), skewed(rng)
    policy, mapped = Adaptive([4] * 3, EXPERTS), mapped_of([4] * 3)
    for _ in range(150):
        decode, prefill = traffic(rng, decoded, 64), traffic(rng, prompts, 2000)
        policy.observe(
            Observation(decode.decode, 64, prefill.decode, prefill_tokens=2000, prefill_steps=1)
        )
        mapped = applied(mapped, policy.decide(mapped))
    both = decoded / decoded.sum(1, keepdims=True) + prompts / prompts.sum(1, keepdims=True)
    for layer in range(LAYERS):
        assert np.argmax(decoded[layer]) in np.flatnonzero(mapped[layer])
        best = set(np.argsort(-both[layer])[:2])
        assert best <= set(np.flatnonzero(mapped[layer]))


def test_where_only_prompts_come_they_count():
    rng = np.random.default_rng(2)
    weights, policy, mapped = skewed(rng), Adaptive([4] * 3, EXPERTS), mapped_of([4] * 3)
    for _ in range(30):
        seen = traffic(rng, weights, 500)
        none = np.zeros_like(seen.decode)
        policy.observe(Observation(none, 0, seen.decode, prefill_tokens=500, prefill_steps=1))
        mapped = applied(mapped, policy.decide(mapped))
    for layer in range(LAYERS):
        assert set(np.argsort(-weights[layer])[:3]) <= set(np.flatnonzero(mapped[layer]))


@pytest.mark.parametrize("cost", [-1.0, float("nan"), float("inf")])
def test_a_copy_cost_that_is_none_is_refused(cost):
    with pytest.raises(InvalidArgument, match="copy cost"):
        AdaptiveSettings(copy_cost=cost)
