"""The four strategies, as KTransformers specifies them and as ktd does where it does not."""

import random

import pytest

from ktd.errors import StrategyUnknown
from ktd.placement.model import ModelShape
from ktd.placement.strategies.registry import STRATEGIES, initial_placement, live_placement


def _shape(slots, num_experts=4):
    return ModelShape(tuple(range(len(slots))), num_experts, tuple(slots), 10)


def test_uniform_gives_the_first_layers_one_more():
    """divmod of the budget, prefix ids."""
    assert initial_placement("uniform", 3, 4, 7).experts == ((0, 1, 2), (0, 1), (0, 1))


def test_front_loading_fills_layers_in_order():
    """Whole layers as long as the budget lasts."""
    assert initial_placement("front-loading", 3, 4, 6).experts == ((0, 1, 2, 3), (0, 1), ())


def test_random_takes_the_head_of_torchs_shuffle():
    """Pairs are numbered row by row; recorded with torch 2.14.1."""
    assert initial_placement("random", 2, 4, 4).experts == ((0, 3), (2, 3))


def test_frequency_is_one_global_ranking():
    """Budget moves between layers."""
    counts = [[9, 1, 8, 7], [0, 6, 2, 0]]
    assert initial_placement("frequency", 2, 4, 4, counts).experts == ((0, 2, 3), (1,))


def test_frequency_breaks_ties_by_layer_then_id():
    """Higher count, then lower layer, then lower id."""
    counts = [[1, 5, 5, 1], [5, 1, 1, 5]]
    assert initial_placement("frequency", 2, 4, 3, counts).experts == ((1, 2), (0,))
    assert initial_placement("frequency", 2, 4, 5, counts).experts == ((0, 1, 2), (0, 3))


@pytest.mark.parametrize("counts", [None, [[0, 0, 0, 0], [0, 0, 0, 0]]])
def test_frequency_without_statistics_is_even_and_says_so(counts):
    """The peer's all-ones table would fill the first layers; ours is the uniform split."""
    choice = initial_placement("frequency", 2, 4, 3, counts)
    assert choice.experts == ((0, 1), (0,))
    assert "no activation statistics" in choice.notes[0]
    live = live_placement("frequency", _shape([2, 1]), counts)
    assert live.experts == ((0, 1), (0,))
    assert live.notes == choice.notes


def test_live_frequency_takes_the_top_of_each_layer():
    """Slots are fixed, so the ranking is per layer."""
    counts = [[9, 1, 8, 7], [0, 6, 2, 6]]
    assert live_placement("frequency", _shape([1, 2]), counts).experts == ((0,), (1, 3))


def test_live_strategies_respect_layers_without_slots():
    """A layer that has none stays empty."""
    for name in STRATEGIES:
        experts = live_placement(name, _shape([0, 4, 1]), [[1] * 4] * 3).experts
        assert [len(chosen) for chosen in experts] == [0, 4, 1]


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("budget", [0, 1, 5, 13, 24])
def test_live_application_under_the_initial_counts_changes_nothing(name, budget):
    """An engine that a strategy started is where the same strategy would bring it."""
    generator = random.Random(3)  # repeatable data
    counts = [[generator.randrange(5) for _ in range(8)] for _ in range(3)]
    initial = initial_placement(name, 3, 8, budget, counts).experts
    assert sum(map(len, initial)) == budget
    shape = _shape([len(chosen) for chosen in initial], num_experts=8)
    assert live_placement(name, shape, counts).experts == initial


@pytest.mark.parametrize("name", STRATEGIES)
def test_budget_beyond_the_model_is_clamped_with_a_note(name):
    """Nothing is silent."""
    choice = initial_placement(name, 2, 4, 99, [[1] * 4] * 2)
    assert choice.experts == ((0, 1, 2, 3), (0, 1, 2, 3))
    assert choice.notes == ("The budget of 99 slots was lowered to the model's 8 experts.",)


@pytest.mark.parametrize("name", STRATEGIES)
def test_choices_grow_with_the_budget(name):
    """Monotone: more budget never drops an expert."""
    generator = random.Random(5)  # repeatable data
    counts = [[generator.randrange(9) for _ in range(6)] for _ in range(4)]
    before = [set()] * 4
    for budget in range(25):
        experts = [set(chosen) for chosen in initial_placement(name, 4, 6, budget, counts).experts]
        assert all(old <= new for old, new in zip(before, experts, strict=True))
        before = experts


def test_unknown_strategy_lists_the_known_ones():
    """The refusal helps."""
    with pytest.raises(StrategyUnknown, match="'magic': choose one of uniform, frequency"):
        live_placement("magic", _shape([1]), None)
