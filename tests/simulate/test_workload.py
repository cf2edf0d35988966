"""Phases, chunks and the clairvoyant."""

from __future__ import annotations

import numpy as np
import pytest

from ktd.errors import ConfigError
from ktd.simulate.clairvoyant import clairvoyant
from ktd.simulate.workload import Phase, Workload, count, with_mixed


def phase(name, first, tokens):
    """Every token of it chooses an expert that only this phase has."""
    return Phase(name, np.full((tokens, 2, 1), first, np.int16))


def test_mixed_takes_500_of_each_in_turn():
    phases = with_mixed([phase("a", 0, 1200), phase("b", 1, 1200), phase("c", 2, 1200)])
    assert [one.name for one in phases] == ["a", "b", "c", "mixed"]
    turns = phases[3].ids[:, 0, 0]
    assert turns.tolist() == [0] * 500 + [1] * 500 + [2] * 200


def test_one_phase_alone_has_nothing_to_be_mixed_with():
    alone = phase("a", 0, 10)
    assert with_mixed([alone]) == (alone,)


def test_phases_of_unequal_length_are_mixed_as_long_as_there_are_tokens():
    phases = with_mixed([phase("a", 0, 100), phase("b", 1, 1600)])
    assert phases[2].tokens == 1600
    assert phases[2].ids[:700, 0, 0].tolist() == [0] * 100 + [1] * 600


def test_chunks_go_on_over_the_border_of_phases():
    workload = Workload((phase("a", 0, 100), phase("b", 1, 60)), 3)
    chunks = list(workload.chunks(64))
    assert [(c.phase, c.tokens, c.last) for c in chunks] == [
        (0, 64, True),
        (0, 36, False),
        (1, 28, True),
        (1, 32, False),
    ]
    assert sum(c.counts for c in chunks).tolist() == [[100, 60, 0]] * 2


def test_a_chunk_ends_where_prefill_turns_into_decode():
    decode = np.array([False] * 70 + [True] * 30)
    workload = Workload((Phase("a", np.zeros((100, 1, 1), np.int16), decode),), 2)
    chunks = [(c.tokens, c.prefill, c.last) for c in workload.chunks(64)]
    assert chunks == [(64, True, True), (6, True, True), (30, False, True)]


def test_ids_below_zero_are_no_pairs():
    assert count(np.array([[[0, -1], [1, 1]]], np.int16), 2).tolist() == [[1, 0], [0, 2]]


def test_the_clairvoyant_moves_at_the_start_of_phases_only():
    workload = Workload((phase("a", 1, 10), phase("b", 2, 30)), 3)
    best = clairvoyant(workload, (1, 1))
    assert best.hit_rates == (1.0, 1.0)
    assert best.moves == 4
    assert best.static_hit_rate == 0.75


def test_a_trace_of_another_model_is_refused():
    with pytest.raises(ConfigError, match="expert 2"):
        Workload((phase("a", 2, 10),), 2)
    with pytest.raises(ConfigError, match="no tokens"):
        Workload((phase("a", 0, 0),), 2)
