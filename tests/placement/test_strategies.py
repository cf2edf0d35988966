"""KTransformers' four strategies, golden from how it specifies them, and ours where it does not."""

import pytest

from ktd.errors import StrategyUnknown
from ktd.placement.model import ModelShape
from ktd.placement.strategies.registry import initial_placement, live_placement
from ktd.placement.strategies.torch_random import randperm


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


def test_uniform_clamps_a_layer_and_drops_the_rest():
    """Each layer at most all its experts."""
    assert initial_placement("uniform", 2, 2, 4).experts == ((0, 1), (0, 1))
    assert initial_placement("uniform", 5, 4, 3).experts == ((0,), (0,), (0,), (), ())


def test_random_is_the_published_shuffle_of_a_real_model():
    """48 layers of 128 experts at 10 %: head and per-layer counts as torch 2.14.1 gives them."""
    experts = initial_placement("random", 48, 128, int(48 * 128 * 0.1)).experts
    assert sum(map(len, experts)) == 614
    order = randperm(48 * 128, 42)[:614]
    for layer, chosen in enumerate(experts):
        assert chosen == tuple(sorted(index % 128 for index in order if index // 128 == layer))
    assert min(map(len, experts)) < 10
    assert max(map(len, experts)) > 16


def test_frequency_ranks_raw_counts():
    """A layer that was counted more gets more, as in KTransformers: no normalisation, no floor."""
    counts = [[90, 80, 70, 60], [4, 3, 2, 1]]
    assert initial_placement("frequency", 2, 4, 4, counts).experts == ((0, 1, 2, 3), ())


def test_frequency_takes_experts_that_were_never_chosen_last():
    """With slots to spare the zeros come by layer, then id."""
    counts = [[0, 0, 3, 0], [0, 0, 0, 0]]
    assert initial_placement("frequency", 2, 4, 3, counts).experts == ((0, 1, 2), ())


def test_live_strategies_respect_layers_without_slots():
    """A layer that has none stays empty."""
    for name in ("uniform", "frequency", "front-loading", "random"):
        experts = live_placement(name, _shape([0, 4, 1]), [[1] * 4] * 3).experts
        assert [len(chosen) for chosen in experts] == [0, 4, 1]


def test_unknown_strategy_lists_the_known_ones():
    """The refusal helps."""
    with pytest.raises(StrategyUnknown, match="'magic': choose one of uniform, frequency"):
        live_placement("magic", _shape([1]), None)
