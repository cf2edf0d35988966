"""What holds for every strategy, over seeded random models: budgets, determinism, symmetry."""

import random
from dataclasses import replace

import numpy as np
import pytest

from ktd.placement.cost import CostModel, predict_step
from ktd.placement.model import ModelShape
from ktd.placement.strategies.balanced import floor_total
from ktd.placement.strategies.base import Evidence
from ktd.placement.strategies.registry import STRATEGIES, initial_placement, live_placement

# Strategies that look at counts, so that renaming experts or layers renames their choice.
RANKING = ("frequency", "balanced", "latency", "coactivation")
NESTED = tuple(name for name in STRATEGIES if name != "latency")


def model(seed):
    """A random model: layers, experts, and evidence without ties."""
    generator = np.random.default_rng(seed)
    layers, experts = int(generator.integers(1, 6)), int(generator.integers(2, 9))
    tokens = generator.random((50, layers, experts)) ** 3 > 0.4
    pairs = np.einsum("tle,tlf->lef", tokens, tokens).astype(float)
    pairs += generator.random(pairs.shape) / 1000
    pairs = (pairs + pairs.transpose(0, 2, 1)) / 2
    counts = np.diagonal(pairs, axis1=1, axis2=2)
    costs = CostModel(
        cpu_layer_seconds=float(generator.random()),
        cpu_bytes_per_second=float(1 + generator.random() * 20),
        gpu_layer_seconds=float(generator.random() / 10),
        gpu_bytes_per_second=float(20 + generator.random() * 200),
        overlap=bool(seed % 2),
    )
    return (
        layers,
        experts,
        Evidence(
            counts=counts.tolist(),
            pairs=pairs,
            batch=1 + seed % 5,
            experts_per_token=1 + seed % 2,
            expert_bytes=3,
            costs=costs,
        ),
    )


def shape(slots, experts):
    return ModelShape(tuple(range(len(slots))), experts, tuple(slots), 3)


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("seed", range(12))
def test_budgets_are_never_exceeded(name, seed):
    """Over all layers at the start, per layer afterwards; ascending ids that exist."""
    layers, experts, evidence = model(seed)
    generator = random.Random(seed)  # repeatable data
    for budget in range(layers * experts + 1):
        chosen = initial_placement(name, layers, experts, budget, evidence=evidence).experts
        assert sum(map(len, chosen)) <= budget
        assert shape([experts] * layers, experts).fits(chosen)
        if name != "latency":
            assert sum(map(len, chosen)) == budget
    slots = [generator.randint(0, experts) for _ in range(layers)]
    assert shape(slots, experts).fits(
        live_placement(name, shape(slots, experts), evidence=evidence).experts
    )


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("seed", range(6))
def test_same_input_same_choice(name, seed):
    """Nothing is drawn, nothing is remembered."""
    layers, experts, evidence = model(seed)
    budget = layers * experts // 2
    first = initial_placement(name, layers, experts, budget, evidence=evidence)
    initial_placement(name, layers, experts, 1, evidence=model(seed + 1)[2].__class__())
    assert initial_placement(name, layers, experts, budget, evidence=evidence) == first


@pytest.mark.parametrize("name", RANKING)
@pytest.mark.parametrize("seed", range(12))
def test_renaming_experts_and_layers_renames_the_choice(name, seed):
    """Permutation equivariance: no id is better than another."""
    layers, experts, evidence = model(seed)
    # Whole layers save the same each: with fixed costs these are ties, which the lower layer wins.
    evidence = replace(evidence, experts_per_token=1, costs=CostModel(1.0, 0.0, 1000.0, 0.0))
    generator = np.random.default_rng(seed)
    by_layer = generator.permutation(layers)
    by_expert = np.stack([generator.permutation(experts) for _ in range(layers)])
    counts, pairs = np.asarray(evidence.counts), evidence.pairs
    renamed = replace(
        evidence,
        counts=[counts[layer][by_expert[layer]].tolist() for layer in by_layer],
        pairs=np.stack(
            [pairs[layer][np.ix_(by_expert[layer], by_expert[layer])] for layer in by_layer]
        ),
    )
    # What strategies give to the first layers (an even split's remainder) has no such symmetry.
    budgets = range(0, layers * experts + 1, layers if name == "coactivation" else 1)
    for budget in budgets:
        before = initial_placement(name, layers, experts, budget, evidence=evidence).experts
        after = initial_placement(name, layers, experts, budget, evidence=renamed).experts
        back = tuple(
            tuple(sorted(map(int, by_expert[layer][list(chosen)])))
            for layer, chosen in zip(by_layer, after, strict=True)
        )
        assert back == tuple(before[layer] for layer in by_layer)


@pytest.mark.parametrize("name", NESTED)
@pytest.mark.parametrize("seed", range(12))
def test_choices_grow_with_the_budget(name, seed):
    """More budget never drops an expert."""
    layers, experts, evidence = model(seed)
    before = [set()] * layers
    for budget in range(layers * experts + 1):
        chosen = initial_placement(name, layers, experts, budget, evidence=evidence).experts
        now = [set(of_layer) for of_layer in chosen]
        assert all(old <= new for old, new in zip(before, now, strict=True))
        before = now


@pytest.mark.parametrize("seed", range(40))
def test_predicted_step_never_grows_with_the_budget(seed):
    """What ``latency`` promises instead: it may empty a layer to fill another one."""
    layers, experts, evidence = model(seed)
    before = float("inf")
    for budget in range(layers * experts + 1):
        choice = initial_placement("latency", layers, experts, budget, evidence=evidence)
        if "predicts no gain" in "".join(choice.notes):
            continue
        seconds = predict_step(
            evidence.costs, evidence.uses(), choice.experts, evidence.expert_bytes
        ).seconds
        assert seconds <= before + 1e-9
        before = seconds


@pytest.mark.parametrize("seed", range(20))
def test_balanced_keeps_floors_and_leaves_no_layer_full(seed):
    """One slot each, then half of an even share; all but one expert at most."""
    layers, experts, evidence = model(seed)
    for budget in range(layers * experts + 1):
        chosen = initial_placement("balanced", layers, experts, budget, evidence=evidence).experts
        sizes = sorted(map(len, chosen))
        assert sizes[0] >= floor_total(layers, experts, budget) // layers
        assert budget < layers or sizes[0] >= 1
        if budget <= layers * (experts - 1):
            assert sizes[-1] < experts


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name != "latency"])
@pytest.mark.parametrize("seed", range(6))
def test_live_application_under_the_initial_counts_changes_nothing(name, seed):
    """An engine that a strategy started is where the same strategy would bring it."""
    layers, experts, evidence = model(seed)
    for budget in range(layers * experts + 1):
        initial = initial_placement(name, layers, experts, budget, evidence=evidence).experts
        slots = [len(chosen) for chosen in initial]
        assert live_placement(name, shape(slots, experts), evidence=evidence).experts == initial


@pytest.mark.parametrize("name", STRATEGIES)
def test_budget_beyond_the_model_is_clamped_with_a_note(name):
    """Nothing is silent."""
    choice = initial_placement(name, 2, 4, 99, [[1] * 4] * 2)
    assert choice.experts == ((0, 1, 2, 3), (0, 1, 2, 3))
    assert choice.notes[-1] == "The budget of 99 slots was lowered to the model's 8 experts."
