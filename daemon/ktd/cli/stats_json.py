"""The JSON of `ktd stats`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ktd.cli.message_json import message_json
from ktd.cli.placement_json import placement_json

if TYPE_CHECKING:
    from ktd.client import LayerCounts, Placement, StatsSnapshot

_TOTALS = (
    "gpu_hit_rate",
    "prefill_hit_rate",
    "decode_hit_rate",
    "gpu_pairs",
    "cpu_pairs",
    "prefill_gpu_pairs",
    "prefill_cpu_pairs",
    "decode_steps",
    "prefill_steps",
    "decode_tokens",
    "prefill_tokens",
    "cpu_weight_bytes",
    "swap_bytes",
    "move_calls",
)


def stats_json(placement: Placement, stats: StatsSnapshot) -> dict[str, Any]:
    """The placement with counts per layer (index is expert id), totals, window and rates."""
    counts, prefill = counts_by_layer(stats), prefill_by_layer(stats)
    value = placement_json(placement)
    for layer in value["layers"]:
        nothing = [0] * layer["num_experts"]
        of_layer = counts.get(layer["layer"], nothing)
        of_prefill = prefill.get(layer["layer"], nothing)
        layer["counts"] = of_layer
        layer["prefill_counts"] = of_prefill
        layer["decode_counts"] = [
            both - one for both, one in zip(of_layer, of_prefill, strict=True)
        ]
    value |= {name: getattr(stats.totals, name) for name in _TOTALS}
    value["move_call_seconds"] = stats.totals.move_call_time.ToNanoseconds() / 1e9
    value["window"] = message_json(stats.window)
    value["rates"] = message_json(stats.rates) if stats.HasField("rates") else None
    value["engine_id"] = stats.engine_id
    return value


def counts_by_layer(stats: StatsSnapshot) -> dict[int, list[int]]:
    """(token, expert) pairs per layer and expert of a full snapshot, both tiers summed."""
    return {layer.layer: _sums(layer.gpu, layer.cpu) for layer in stats.layers}


def prefill_by_layer(stats: StatsSnapshot) -> dict[int, list[int]]:
    """Those of them that were for prefill."""
    return {layer.layer: _sums(layer.prefill_gpu, layer.prefill_cpu) for layer in stats.layers}


def hit_rate(counts: LayerCounts) -> float | None:
    """The share of a layer's pairs that GPU slots computed; None without pairs."""
    on_gpu, on_cpu = sum(counts.gpu), sum(counts.cpu)
    return on_gpu / (on_gpu + on_cpu) if on_gpu + on_cpu else None


def _sums(gpu: Any, cpu: Any) -> list[int]:
    return [on_gpu + on_cpu for on_gpu, on_cpu in zip(gpu, cpu, strict=True)]
