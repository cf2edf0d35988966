"""What a client is told: everything, then what changed."""

from dataclasses import replace

import numpy as np

from ktd.stats.deltas import snapshot_of
from ktd.stats.model import LayerCounts, Sample

# By kind, layer, expert and tier.
COUNTS = np.array([[[[1, 0], [0, 1]], [[5, 0], [0, 0]]], [[[0, 2], [3, 3]], [[0, 6], [7, 8]]]])
GROWN = np.array([[[[0, 0], [0, 0]]] * 2, [[[0, 0], [0, 0]], [[0, 0], [2, 0]]]])
SAMPLE = Sample(
    time=110.0,
    start_time=100.0,
    engine_id="e1",
    moe_layers=(1, 3),
    num_experts=2,
    counts=COUNTS,
    decode_steps=20,
    prefill_steps=1,
    decode_tokens=40,
    prefill_tokens=9,
    cpu_weight_bytes=0,
    swap_bytes=0,
)
LATER = replace(SAMPLE, time=112.0, counts=COUNTS + GROWN, decode_steps=22, decode_tokens=50)


def test_first_snapshot_is_full_and_spans_the_engines_life():
    """Index is id; rates are those since the start."""
    snapshot = snapshot_of(SAMPLE)
    assert snapshot.full
    assert snapshot.layers == (
        LayerCounts(1, (), (1, 3), (2, 4), (1, 0), (0, 1)),
        LayerCounts(3, (), (5, 7), (6, 8), (5, 0), (0, 0)),
    )
    assert snapshot.window.length == 10.0
    assert snapshot.window.decode_tokens_per_second == 4.0
    assert snapshot.totals.gpu_hit_rate == 16 / 36
    assert snapshot.totals.prefill_hit_rate == 6 / 7
    assert snapshot.totals.decode_hit_rate == 10 / 29


def test_delta_holds_absolute_counts_of_changed_experts_only():
    """A layer without changes is not mentioned."""
    snapshot = snapshot_of(LATER, SAMPLE, sequence=2, dropped=3)
    assert not snapshot.full
    assert snapshot.layers == (LayerCounts(3, (1,), (9,), (8,), (0,), (0,)),)
    assert (snapshot.sequence, snapshot.dropped) == (2, 3)
    assert snapshot.window.length == 2.0
    assert snapshot.window.decode_tokens_per_second == 5.0
    assert snapshot.window.gpu_hit_rate == snapshot.window.decode_hit_rate == 1.0
    assert snapshot.window.prefill_hit_rate == 0.0


def test_idle_engine_gives_an_empty_delta():
    """Nothing changed: no layers, rates of zero, no division by zero."""
    snapshot = snapshot_of(SAMPLE, SAMPLE)
    assert snapshot.layers == ()
    assert snapshot.window.gpu_hit_rate == 0.0
    assert snapshot.window.decode_tokens_per_second == 0.0


def test_restarted_engine_gives_a_full_snapshot_again():
    """Counts begin at zero with another engine, so a delta would make no sense."""
    restarted = replace(SAMPLE, engine_id="e2", counts=COUNTS * 0, start_time=111.0, time=112.0)
    snapshot = snapshot_of(restarted, SAMPLE)
    assert snapshot.full
    assert snapshot.window.length == 1.0
    assert snapshot.totals.gpu_hit_rate == 0.0
