"""Statistics ↔ protobuf messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ktd.rpc.convert import duration, timestamp
from ktd.v1 import stats_pb2

if TYPE_CHECKING:
    from ktd.stats.model import LayerCounts, Snapshot, Totals, Window
    from ktd.stats.rates import Rates


def snapshot_message(
    snapshot: Snapshot, placement_revision: int, rates: Rates | None = None
) -> stats_pb2.StatsSnapshot:
    """A snapshot, full or with what changed."""
    return stats_pb2.StatsSnapshot(
        time=timestamp(snapshot.time),
        sequence=snapshot.sequence,
        full=snapshot.full,
        dropped=snapshot.dropped,
        placement_revision=placement_revision,
        engine_id=snapshot.engine_id,
        layers=map(_layer, snapshot.layers),
        totals=_totals(snapshot.totals),
        window=_window(snapshot.window),
        rates=_rates(rates) if rates is not None else None,
    )


def _layer(layer: LayerCounts) -> stats_pb2.LayerCounts:
    return stats_pb2.LayerCounts(
        layer=layer.layer,
        experts=layer.experts,
        gpu=layer.gpu,
        cpu=layer.cpu,
        prefill_gpu=layer.prefill_gpu,
        prefill_cpu=layer.prefill_cpu,
    )


def _totals(totals: Totals) -> stats_pb2.Totals:
    return stats_pb2.Totals(
        decode_steps=totals.decode_steps,
        prefill_steps=totals.prefill_steps,
        decode_tokens=totals.decode_tokens,
        prefill_tokens=totals.prefill_tokens,
        gpu_pairs=totals.gpu_pairs,
        cpu_pairs=totals.cpu_pairs,
        prefill_gpu_pairs=totals.prefill_gpu_pairs,
        prefill_cpu_pairs=totals.prefill_cpu_pairs,
        gpu_hit_rate=totals.gpu_hit_rate,
        prefill_hit_rate=totals.prefill_hit_rate,
        decode_hit_rate=totals.decode_hit_rate,
        cpu_weight_bytes=totals.cpu_weight_bytes,
        swap_bytes=totals.swap_bytes,
    )


def _window(window: Window) -> stats_pb2.Window:
    return stats_pb2.Window(
        length=duration(window.length),
        decode_steps=window.decode_steps,
        prefill_steps=window.prefill_steps,
        decode_tokens=window.decode_tokens,
        prefill_tokens=window.prefill_tokens,
        gpu_pairs=window.gpu_pairs,
        cpu_pairs=window.cpu_pairs,
        prefill_gpu_pairs=window.prefill_gpu_pairs,
        prefill_cpu_pairs=window.prefill_cpu_pairs,
        gpu_hit_rate=window.gpu_hit_rate,
        prefill_hit_rate=window.prefill_hit_rate,
        decode_hit_rate=window.decode_hit_rate,
        decode_tokens_per_second=window.decode_tokens_per_second,
    )


def _rates(rates: Rates) -> stats_pb2.Rates:
    prefill, decode = rates.per_second
    return stats_pb2.Rates(
        half_life=duration(rates.half_life),
        layers=(
            stats_pb2.LayerRates(
                layer=layer,
                prefill_gpu=prefill[position, :, 0].tolist(),
                prefill_cpu=prefill[position, :, 1].tolist(),
                decode_gpu=decode[position, :, 0].tolist(),
                decode_cpu=decode[position, :, 1].tolist(),
            )
            for position, layer in enumerate(rates.moe_layers)
        ),
    )
