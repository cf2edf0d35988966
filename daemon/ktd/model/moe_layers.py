"""Which layers of a model have experts, in every way that Hugging Face configurations say it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def moe_layers(config: Mapping[str, Any], num_layers: int) -> tuple[int, ...]:
    """Indices of the layers with experts, ascending.

    Rules, all of which must allow a layer: ``first_k_dense_replace`` and ``moe_layer_freq`` (number
    or list of flags; DeepSeek, GLM, MiMo), ``decoder_sparse_step`` and ``mlp_only_layers`` (Qwen),
    ``moe_layer_start_index``, ``…_end_index``, ``…_interval`` (Ernie), ``moe_layers_enum`` (Step).
    """
    return tuple(index for index in range(num_layers) if _has_experts(config, index))


def _has_experts(config: Mapping[str, Any], index: int) -> bool:
    return (
        _by_frequency(config, index)
        and _by_sparse_step(config, index)
        and _by_interval(config, index)
        and _by_enumeration(config.get("moe_layers_enum"), index)
    )


def _by_frequency(config: Mapping[str, Any], index: int) -> bool:
    frequency = config.get("moe_layer_freq")
    if isinstance(frequency, Sequence) and not isinstance(frequency, str):
        # A list has one flag per layer, and says all there is to say.
        return index < len(frequency) and bool(frequency[index])
    first = config.get("first_k_dense_replace") or 0
    return bool(index >= first and index % int(frequency or 1) == 0)


def _by_sparse_step(config: Mapping[str, Any], index: int) -> bool:
    step = config.get("decoder_sparse_step")
    step = 1 if step is None else step
    dense = config.get("mlp_only_layers") or ()
    return step > 0 and (index + 1) % step == 0 and index not in dense


def _by_interval(config: Mapping[str, Any], index: int) -> bool:
    start = _smallest(config.get("moe_layer_start_index"), 0)
    end = _largest(config.get("moe_layer_end_index"), index)
    interval = config.get("moe_layer_interval") or 1
    return start <= index <= end and (index + 1) % interval == 0


def _by_enumeration(value: Any, index: int) -> bool:
    if value is None:
        return True
    listed = value.split(",") if isinstance(value, str) else value
    return index in {int(item) for item in listed}


def _smallest(value: Any, default: int) -> int:
    return min(value) if isinstance(value, list) else default if value is None else int(value)


def _largest(value: Any, default: int) -> int:
    if isinstance(value, list):
        value = max(value)
    # -1 stands for the last layer.
    return default if value is None or value < 0 else int(value)
