"""Statistics, recordings and profiles ↔ protobuf messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ktd.rpc.convert import duration, timestamp
from ktd.stats.recording import MODES
from ktd.v1 import profile_pb2, recording_pb2, stats_pb2

if TYPE_CHECKING:
    from ktd.stats.model import LayerCounts, Snapshot, Totals, Window
    from ktd.stats.profile import Profile
    from ktd.stats.rates import Rates
    from ktd.stats.recording import Recording


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
        move_calls=totals.move_calls,
        move_call_time=duration(totals.move_call_seconds),
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


def mode_name(mode: int) -> str:
    """The name of a ``RecordingMode``; empty where none is chosen."""
    return MODES[mode - 1] if 0 < mode <= len(MODES) else ""


def recording_message(recording: Recording) -> recording_pb2.Recording:
    """A recording at one moment."""
    number = MODES.index(recording.mode) + 1 if recording.mode in MODES else 0
    begun = recording.start_time
    return recording_pb2.Recording(
        recording=recording.recording,
        mode=recording_pb2.RecordingMode.ValueType(number),
        directory=str(recording.folder),
        start_time=timestamp(begun) if begun is not None else None,
        gpu_masks=recording.gpu_masks,
        passes=recording.passes,
        dropped_passes=recording.dropped_passes,
        tokens=recording.tokens,
        bytes=recording.bytes,
        notes=recording.notes,
    )


def profile_message(profile: Profile, *, layers: bool = True) -> profile_pb2.Profile:
    """A profile, with or without its counts."""
    prefill, decode = profile.counts
    shape = profile.shape
    return profile_pb2.Profile(
        name=profile.name,
        save_time=timestamp(profile.save_time),
        model=profile.model,
        num_layers=shape.num_layers,
        num_moe_layers=len(shape.moe_layers),
        num_experts=shape.num_experts,
        prefill_pairs=int(prefill.sum()),
        decode_pairs=int(decode.sum()),
        layers=(
            profile_pb2.ProfileLayer(
                layer=layer, prefill=prefill[position].tolist(), decode=decode[position].tolist()
            )
            for position, layer in enumerate(shape.moe_layers if layers else ())
        ),
    )
