"""Turns samples into what a client is told: everything at first, then only what changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ktd.stats.model import LayerCounts, Snapshot, Totals, Window

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    totals = _totals(sample)
    return Snapshot(
        time=sample.time,
        sequence=sequence,
        full=last is None,
        dropped=dropped,
        engine_id=sample.engine_id,
        layers=_full(sample) if last is None else _changed(sample, last),
        totals=totals,
        window=_window(sample, totals, last),
    )


def _full(sample: Sample) -> tuple[LayerCounts, ...]:
    return tuple(
        LayerCounts(layer, (), tuple(row[::2]), tuple(row[1::2]))
        for layer, row in zip(sample.moe_layers, sample.rows(), strict=True)
    )


def _changed(sample: Sample, last: Sample) -> tuple[LayerCounts, ...]:
    layers: list[LayerCounts] = []
    for layer, row, old in zip(sample.moe_layers, sample.rows(), last.rows(), strict=True):
        # Whole rows first: an idle engine costs one comparison a layer.
        if row != old:
            layers.append(_changed_in(layer, row, old))
    return tuple(layers)


def _changed_in(layer: int, row: Sequence[int], old: Sequence[int]) -> LayerCounts:
    pairs = zip(row[::2], row[1::2], old[::2], old[1::2], strict=True)
    changed = [
        (expert, gpu, cpu)
        for expert, (gpu, cpu, old_gpu, old_cpu) in enumerate(pairs)
        if gpu != old_gpu or cpu != old_cpu
    ]
    experts, gpus, cpus = zip(*changed, strict=True)
    return LayerCounts(layer, experts, gpus, cpus)


def _totals(sample: Sample) -> Totals:
    return Totals(
        decode_steps=sample.decode_steps,
        prefill_steps=sample.prefill_steps,
        decode_tokens=sample.decode_tokens,
        prefill_tokens=sample.prefill_tokens,
        gpu_pairs=sample.gpu_pairs,
        cpu_pairs=sample.cpu_pairs,
        cpu_weight_bytes=sample.cpu_weight_bytes,
        swap_bytes=sample.swap_bytes,
    )


def _window(sample: Sample, totals: Totals, last: Sample | None) -> Window:
    if last is None:
        return Window(
            length=max(0.0, sample.time - sample.start_time),
            decode_steps=totals.decode_steps,
            decode_tokens=totals.decode_tokens,
            prefill_tokens=totals.prefill_tokens,
            gpu_pairs=totals.gpu_pairs,
            cpu_pairs=totals.cpu_pairs,
        )
    return Window(
        length=max(0.0, sample.time - last.time),
        decode_steps=sample.decode_steps - last.decode_steps,
        decode_tokens=sample.decode_tokens - last.decode_tokens,
        prefill_tokens=sample.prefill_tokens - last.prefill_tokens,
        gpu_pairs=totals.gpu_pairs - last.gpu_pairs,
        cpu_pairs=totals.cpu_pairs - last.cpu_pairs,
    )
