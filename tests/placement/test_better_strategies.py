"""balanced, latency and coactivation against brute force, and on cases done by hand."""

import itertools
import random

import numpy as np
import pytest

from ktd.errors import InvalidArgument
from ktd.placement.cost import CostModel, expected_use, predict_step
from ktd.placement.model import ModelShape
from ktd.placement.strategies.balanced import floor_total
from ktd.placement.strategies.base import Evidence
from ktd.placement.strategies.latency import savings_of
from ktd.placement.strategies.registry import initial_placement, live_placement


def subsets(num_experts):
    return [
        chosen
        for size in range(num_experts + 1)
        for chosen in itertools.combinations(range(num_experts), size)
    ]


def random_counts(generator, layers, experts):
    return [[generator.randint(1, 50) for _ in range(experts)] for _ in range(layers)]


# balanced


@pytest.mark.parametrize("seed", range(10))
def test_balanced_keeps_the_most_bytes_off_the_cpu(seed):
    """No other sizes within the same floors and ceiling do better: all of them are tried."""
    generator = random.Random(seed)  # repeatable data
    layers, experts = 3, 5
    evidence = Evidence(counts=random_counts(generator, layers, experts), batch=1 + seed % 4)
    uses = evidence.uses()
    best = [[sum(sorted(use, reverse=True)[:n]) for n in range(experts + 1)] for use in uses]
    for budget in range(layers * experts + 1):
        chosen = initial_placement("balanced", layers, experts, budget, evidence=evidence).experts
        ours = sum(use[e] for use, of in zip(uses, chosen, strict=True) for e in of)
        share = floor_total(layers, experts, budget) // layers
        ceiling = experts - (budget <= layers * (experts - 1))
        floors = [share] * layers
        left = floor_total(layers, experts, budget) - share * layers
        nexts = sorted(range(layers), key=lambda i: sorted(uses[i], reverse=True)[share:][:1])
        for layer in nexts[::-1][:left]:
            floors[layer] += 1
        optimum = max(
            sum(best[layer][n] for layer, n in enumerate(sizes))
            for sizes in itertools.product(*(range(floor, ceiling + 1) for floor in floors))
            if sum(sizes) == budget
        )
        assert ours == pytest.approx(optimum)


def test_balanced_counts_layers_alike():
    """A layer that was counted ten times as often is not ten times as important."""
    counts = [[90, 80, 70, 60], [9, 8, 7, 6]]
    chosen = initial_placement("balanced", 2, 4, 4, counts).experts
    assert chosen == ((0, 1), (0, 1))
    assert initial_placement("frequency", 2, 4, 4, counts).experts == ((0, 1, 2, 3), ())


def test_balanced_gives_more_slots_where_they_gain_more():
    """Beyond the floors of 2 and 2 the four best shares decide, whatever the layer."""
    counts = [[70, 20, 6, 4, 0, 0], [17, 17, 17, 17, 16, 16]]
    chosen = initial_placement("balanced", 2, 6, 6, counts).experts
    assert chosen == ((0, 1), (0, 1, 2, 3))


# latency


def brute_force(evidence, layers, experts, budget):
    """The shortest step over every set of experts of every layer."""
    reachable = {0: 0.0}
    for use in evidence.uses():
        by_size = {}
        for chosen in subsets(experts):
            cost = predict_step(evidence.costs, use[None], (chosen,), evidence.expert_bytes).seconds
            by_size[len(chosen)] = min(cost, by_size.get(len(chosen), cost))
        following = {}
        for (used, seconds), (size, cost) in itertools.product(reachable.items(), by_size.items()):
            total = used + size
            if total <= budget:
                following[total] = min(seconds + cost, following.get(total, float("inf")))
        reachable = following
    return min(reachable.values())


def ours(evidence, layers, experts, budget):
    choice = initial_placement("latency", layers, experts, budget, evidence=evidence)
    return predict_step(evidence.costs, evidence.uses(), choice.experts, 1).seconds


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_latency_is_the_optimum_while_savings_fall(seed, overlap):
    """No fixed CPU cost, so no slot saves more than an earlier one: every budget is exact."""
    generator = random.Random(seed)  # repeatable data
    layers, experts = 3, 5
    costs = CostModel(1.0, 0.0, 1000.0, 0.0, overlap=overlap)
    evidence = Evidence(
        counts=random_counts(generator, layers, experts),
        batch=1 + seed % 4,
        experts_per_token=2,
        costs=costs,
    )
    for budget in range(layers * experts):
        best = brute_force(evidence, layers, experts, budget)
        assert ours(evidence, layers, experts, budget) == pytest.approx(best)


@pytest.mark.parametrize("seed", range(8))
def test_latency_misses_the_optimum_by_less_than_one_layers_fixed_cost(seed):
    """With a bonus for whole layers greedy is exact only where a layer's block ends."""
    generator = random.Random(seed)  # repeatable data
    layers, experts, fixed = 3, 5, 0.4
    evidence = Evidence(
        counts=random_counts(generator, layers, experts),
        experts_per_token=2,
        costs=CostModel(1.0, fixed, 1000.0, 0.0),
    )
    exact = 0
    for budget in range(layers * experts + 1):
        best = brute_force(evidence, layers, experts, budget)
        missed = ours(evidence, layers, experts, budget) - best
        assert -1e-9 <= missed < fixed
        exact += missed < 1e-9
    assert exact > layers * experts // 2


def test_latency_fills_a_layer_when_waking_the_cpu_costs_more_than_its_bytes():
    """A whole layer first; where bytes are what costs, the hottest of both."""
    counts = [[10, 9, 8, 7], [10, 9, 8, 7]]
    dear = CostModel(1.0, 100.0, 1000.0, 0.0)
    cheap = CostModel(1.0, 0.0, 1000.0, 0.0)
    chosen = {
        costs: initial_placement(
            "latency", 2, 4, 4, evidence=Evidence(counts=counts, costs=costs)
        ).experts
        for costs in (dear, cheap)
    }
    assert chosen[dear] == ((0, 1, 2, 3), ())
    assert chosen[cheap] == ((0, 1), (0, 1))


def test_latency_leaves_slots_empty_that_would_make_the_gpu_the_longer_side():
    """And says how many."""
    evidence = Evidence(counts=[[1, 1, 1, 1]], experts_per_token=4, costs=CostModel(1, 0, 1, 0))
    choice = initial_placement("latency", 1, 4, 4, evidence=evidence)
    assert choice.experts == ((0, 1),)
    assert choice.notes == ("2 slots of the budget stay unused: no step gets shorter with them.",)
    shape = ModelShape((0,), 4, (3,), 1)
    assert live_placement("latency", shape, evidence=evidence).experts == ((0, 1),)


def test_latency_says_when_slots_gain_nothing():
    """As where slots are host memory: then it ranks as balanced does."""
    evidence = Evidence(counts=[[1, 5, 2, 3]], costs=CostModel(1, 0, 1, 0, overlap=False))
    choice = initial_placement("latency", 1, 4, 2, evidence=evidence)
    assert choice.experts == ((1, 3),)
    assert "no gain from any slot on this machine" in choice.notes[0]
    live = live_placement("latency", ModelShape((0,), 4, (2,), 1), evidence=evidence)
    assert live == choice


# coactivation


def test_coactivation_keeps_together_what_is_chosen_together():
    """Frequency takes the four hottest; here two pairs that come together win over loners."""
    pairs = np.zeros((1, 6, 6))
    for one, other, together in ((0, 1, 90), (2, 3, 80)):
        pairs[0, one, other] = pairs[0, other, one] = together
    np.fill_diagonal(pairs[0], [95, 95, 85, 85, 94, 93])
    counts = np.diagonal(pairs, axis1=1, axis2=2).tolist()
    evidence = Evidence(counts=counts, pairs=pairs)
    assert initial_placement("coactivation", 1, 6, 2, evidence=evidence).experts == ((0, 1),)
    assert initial_placement("frequency", 1, 6, 4, counts).experts == ((0, 1, 4, 5),)


def test_coactivation_is_near_the_heaviest_set():
    """No guarantee; on routing with groups 90 % of the optimum each, and more than frequency."""
    mine = hottest = 0.0
    for seed in range(10):
        generator = np.random.default_rng(seed)
        groups = generator.permutation(8).reshape(4, 2)
        tokens = np.zeros((400, 8))
        for token in tokens:
            token[groups[generator.integers(4)]] = 1
            token[generator.integers(8)] = 1
        pairs = (tokens.T @ tokens)[None]
        counts = np.diagonal(pairs, axis1=1, axis2=2).tolist()
        evidence = Evidence(counts=counts, pairs=pairs)
        (chosen,) = initial_placement("coactivation", 1, 8, 4, evidence=evidence).experts
        (frequent,) = initial_placement("frequency", 1, 8, 4, counts).experts
        best = max(worth(pairs[0], four) for four in itertools.combinations(range(8), 4))
        assert worth(pairs[0], chosen) >= 0.9 * best
        mine += worth(pairs[0], chosen)
        hottest += worth(pairs[0], frequent)
    assert mine > hottest


def worth(pairs, chosen):
    """The objective: pairs i <= j of chosen experts."""
    block = pairs[np.ix_(chosen, chosen)]
    return (block.sum() + np.trace(block)) / 2


def test_coactivation_without_a_recording_is_frequency_and_says_so():
    """Both at the start and live."""
    counts = [[1, 5, 2, 3]]
    choice = initial_placement("coactivation", 1, 4, 2, counts)
    assert choice.experts == ((1, 3),)
    assert "Nobody has recorded which experts are chosen together" in choice.notes[0]
    assert live_placement("coactivation", ModelShape((0,), 4, (2,), 1), counts) == choice


def test_coactivation_refuses_a_recording_of_another_model():
    """With both shapes."""
    evidence = Evidence(counts=[[1] * 4], pairs=np.zeros((2, 8, 8)))
    with pytest.raises(InvalidArgument, match=r"shape \[2, 8, 8\], but this model needs \[1, 4, 4"):
        initial_placement("coactivation", 1, 4, 2, evidence=evidence)


# the cost model


def test_expected_use_is_the_chance_that_some_token_needs_the_expert():
    """1 - (1 - p)^batch, at most 1, even without counts."""
    for counts, per_token, batch, expected in (
        ([3, 1], 1, 1, [0.75, 0.25]),
        ([3, 1], 1, 2, [1 - 0.0625, 1 - 0.5625]),
        ([9, 1, 0], 2, 1, [1.0, 0.2, 0.0]),
        ([0, 0, 0, 0], 2, 1, [0.5] * 4),
    ):
        (found,) = expected_use(np.array([counts]), per_token, batch)
        assert found.tolist() == pytest.approx(expected)


def test_step_adds_up_layers_and_takes_the_longer_side_of_each():
    """By hand: bytes over rates, and fixed times only where there is something."""
    costs = CostModel(10.0, 1.0, 100.0, 0.5, other_step_seconds=7.0)
    uses = np.array([[0.5, 0.5], [0.5, 0.5], [1.0, 1.0]])
    step = predict_step(costs, uses, ((), (0, 1), (0,)), expert_bytes=40)
    # All on the CPU: 1 + 40/10. All in slots: 0.5 + 40/100. One each: max(1 + 40/10, 0.5 + 0.4).
    assert step.seconds == pytest.approx(7 + 5 + 0.9 + 5)
    assert step.cpu_bytes == pytest.approx(80)
    serial = predict_step(CostModel(10, 1, 100, 0.5, overlap=False), uses[2:], ((0,),), 40)
    assert serial.seconds == pytest.approx(5 + 0.9)


def test_experts_that_are_smaller_in_host_memory_cost_the_cpu_less():
    """A quarter of the bytes there, all of them in a slot; strategies and forecasts agree."""
    costs = CostModel(10.0, 1.0, 100.0, 0.5, cpu_share=0.25)
    uses = np.array([[0.5, 0.5], [1.0, 1.0]])
    step = predict_step(costs, uses, ((), (0,)), expert_bytes=40)
    # 1 + 10/10, and max(1 + 10/10, 0.5 + 40/100).
    assert step.seconds == pytest.approx(2 + 2)
    assert step.cpu_bytes == pytest.approx(20)
    saved = savings_of(uses[1:], costs, 40)
    assert saved[0].tolist() == pytest.approx([3 - 2, 2 - 1.3])


def test_costs_name_what_nobody_has_measured():
    """So that a plan can say which figures are defaults."""
    costs = CostModel(measured=("link_bytes_per_second", "other_step_seconds"))
    assert costs.defaults() == (
        "cpu_bytes_per_second",
        "cpu_layer_seconds",
        "gpu_bytes_per_second",
        "gpu_layer_seconds",
    )
