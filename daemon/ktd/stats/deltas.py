"""Turns samples into what a client is told: everything at first, then only what changed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ktd.rankfile import Kind
from ktd.stats.model import CPU, GPU, LayerCounts, Snapshot, Totals, Window

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ktd.stats.model import Sample


def snapshot_of(
    sample: Sample, last: Sample | None = None, *, sequence: int = 1, dropped: int = 0
) -> Snapshot:
    """What to tell a client that was told ``last`` before.

    Full, with the window since the engine's start, if there is no ``last`` or it came from another
    engine: counts begin at 0 with each one.
    """
    if last is not None and last.engine_id != sample.engine_id:
        last = None
    return Snapshot(
        time=sample.time,
        sequence=sequence,
        full=last is None,
        dropped=dropped,
        engine_id=sample.engine_id,
        layers=full_counts(sample) if last is None else _changed(sample, last),
        totals=_totals(sample),
        window=window_of(sample, last),
    )


def snapshot_of_window(sample: Sample, begin: Sample | None) -> Snapshot:
    """What was counted since ``begin``, a sample of the same engine; since its start without one.

    Counts per layer and the window are those of the window, totals those since the start.
    """
    if begin is None:
        return snapshot_of(sample)
    counted = replace(sample, counts=sample.counts - begin.counts)
    return replace(
        snapshot_of(sample), layers=full_counts(counted), window=window_of(sample, begin)
    )


def full_counts(sample: Sample) -> tuple[LayerCounts, ...]:
    """Every layer and expert."""
    return tuple(
        _layer(sample, position, None, layer) for position, layer in enumerate(sample.moe_layers)
    )


def _changed(sample: Sample, last: Sample) -> tuple[LayerCounts, ...]:
    # Only grows: what changed in one kind or tier cannot be made up for by another.
    changed = (sample.counts != last.counts).any(axis=(0, 3))
    return tuple(
        _layer(sample, position, np.flatnonzero(changed[position]), layer)
        for position, layer in enumerate(sample.moe_layers)
        if changed[position].any()
    )


def _layer(
    sample: Sample, position: int, experts: NDArray[np.intp] | None, layer: int
) -> LayerCounts:
    counts = sample.counts[:, position]
    if experts is not None:
        counts = counts[:, experts]
    both = counts.sum(axis=0)
    return LayerCounts(
        layer=layer,
        experts=() if experts is None else tuple(experts.tolist()),
        gpu=tuple(both[:, GPU].tolist()),
        cpu=tuple(both[:, CPU].tolist()),
        prefill_gpu=tuple(counts[Kind.PREFILL, :, GPU].tolist()),
        prefill_cpu=tuple(counts[Kind.PREFILL, :, CPU].tolist()),
    )


def _totals(sample: Sample) -> Totals:
    return Totals(
        decode_steps=sample.decode_steps,
        prefill_steps=sample.prefill_steps,
        decode_tokens=sample.decode_tokens,
        prefill_tokens=sample.prefill_tokens,
        gpu_pairs=sample.gpu_pairs,
        cpu_pairs=sample.cpu_pairs,
        prefill_gpu_pairs=sample.prefill_gpu_pairs,
        prefill_cpu_pairs=sample.prefill_cpu_pairs,
        cpu_weight_bytes=sample.cpu_weight_bytes,
        swap_bytes=sample.swap_bytes,
        move_calls=sample.move_calls,
        move_call_seconds=sample.move_call_seconds,
    )


def window_of(sample: Sample, last: Sample | None) -> Window:
    """Sums since ``last``, a sample of the same engine; since the engine's start without one."""
    counts = sample.counts if last is None else sample.counts - last.counts
    by_kind = counts.sum(axis=(1, 2))
    gpu, cpu = by_kind.sum(axis=0).tolist()
    prefill_gpu, prefill_cpu = by_kind[Kind.PREFILL].tolist()
    begin = sample.start_time if last is None else last.time
    return Window(
        length=max(0.0, sample.time - begin),
        decode_steps=sample.decode_steps - (last.decode_steps if last else 0),
        prefill_steps=sample.prefill_steps - (last.prefill_steps if last else 0),
        decode_tokens=sample.decode_tokens - (last.decode_tokens if last else 0),
        prefill_tokens=sample.prefill_tokens - (last.prefill_tokens if last else 0),
        gpu_pairs=gpu,
        cpu_pairs=cpu,
        prefill_gpu_pairs=prefill_gpu,
        prefill_cpu_pairs=prefill_cpu,
    )
