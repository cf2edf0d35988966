"""How flags become slots."""

import pytest

from ktd.errors import ConfigError
from ktd.placement.budget import Budget, budget_of, even_slots


def test_ratio_is_of_all_experts_and_truncated():
    """int(layers * experts * ratio), as KTransformers computes it."""
    assert budget_of(3, 5, ratio=0.5).slots == 7
    assert budget_of(48, 512, ratio=0.1).slots == int(48 * 512 * 0.1)


def test_number_per_layer_is_multiplied():
    """--num-gpu-experts speaks of one layer."""
    assert budget_of(3, 5, per_layer=2).slots == 6


def test_ratio_wins_with_a_warning():
    """Both flags: the ratio counts, and the log says so."""
    budget = budget_of(3, 5, ratio=0.2, per_layer=4)
    assert budget.slots == 3
    assert "--num-gpu-experts 4 is ignored" in budget.notes[0]


def test_neither_is_what_memory_allows():
    """Asked only then, and its notes are kept."""
    fits = Budget(5, ("as much as fits",))
    assert budget_of(4, 8, auto=lambda: fits) == fits
    assert budget_of(4, 8, ratio=0.5, auto=None).slots == 16
    with pytest.raises(ConfigError, match="No budget was given"):
        budget_of(4, 8)


def test_more_than_a_layer_has_is_clamped_with_a_note():
    """A slot without an expert would be wasted."""
    budget = budget_of(3, 5, per_layer=9)
    assert budget.slots == 15
    assert "lowered to 5" in budget.notes[0]


@pytest.mark.parametrize("ratio", [-0.1, 1.01, float("nan"), float("inf")])
def test_ratio_outside_0_to_1_is_refused_by_value(ratio):
    """The sentence names what was given."""
    with pytest.raises(ConfigError, match=f"--gpu-experts-ratio is {ratio:g}, but must lie"):
        budget_of(3, 5, ratio=ratio)


def test_negative_number_is_refused():
    """So is a count below zero."""
    with pytest.raises(ConfigError, match="--num-gpu-experts is -1"):
        budget_of(3, 5, per_layer=-1)


@pytest.mark.parametrize(("ratio", "slots"), [(0.0, 0), (1.0, 15)])
def test_nothing_and_everything_are_allowed(ratio, slots):
    """Both ends are included."""
    assert budget_of(3, 5, ratio=ratio).slots == slots


def test_even_slots_are_the_same_for_every_layer():
    """What does not divide is left over, and said."""
    assert even_slots(3, 5, 7) == (
        (2, 2, 2),
        ("--live-slots even gives each of 3 layers 2 slots; 1 of the budget are left over.",),
    )
    assert even_slots(3, 5, 6) == ((2, 2, 2), ())
    assert even_slots(3, 5, 99) == ((5, 5, 5), ())
