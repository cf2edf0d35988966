"""Which layers of a model have experts, in every way that Hugging Face configurations say it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# What ``mlp_layer_types`` calls a layer without a router; ``hash_moe`` has experts, too.
_DENSE = "dense"


def moe_layers(config: Mapping[str, Any], num_layers: int) -> tuple[int, ...]:
    """Indices of the layers with experts, ascending.

    A list with an entry per layer says all there is to say: ``mlp_layer_types`` (GLM, DeepSeek
    since Transformers 5), ``moe_layer_freq`` as flags (MiMo), ``moe_layers`` (Llama 4) or
    ``moe_layers_enum`` (Step). Otherwise all of these rules must allow a layer:
    ``first_k_dense_replace`` with ``moe_layer_freq`` as a number (DeepSeek, GLM),
    ``num_dense_layers`` (LFM2, AFMoE), ``decoder_sparse_step`` with ``mlp_only_layers`` (Qwen),
    ``interleave_moe_layer_step`` (Llama 4), ``expert_layer_period`` with ``…_offset`` (Jamba),
    ``moe_layer_start_index``, ``…_end_index``, ``…_interval`` (Ernie).

    KTransformers knows ``first_k_dense_replace`` and ``moe_layer_freq`` only, and reads a list as
    "its first layer with experts, and all after it"; its budgets differ from ours on such models.

    Raises:
        ValueError, TypeError: a value is of no known form.
    """
    listed = _listed(config, num_layers)
    if listed is not None:
        return tuple(index for index in range(num_layers) if index in listed)
    return tuple(index for index in range(num_layers) if _has_experts(config, index))


def _listed(config: Mapping[str, Any], num_layers: int) -> set[int] | None:
    types = config.get("mlp_layer_types")
    if types:
        return {index for index, kind in enumerate(types[:num_layers]) if kind != _DENSE}
    frequency = config.get("moe_layer_freq")
    if isinstance(frequency, Sequence) and not isinstance(frequency, str):
        return {index for index, flag in enumerate(frequency) if flag}
    named = config.get("moe_layers")
    if named is None:
        named = config.get("moe_layers_enum")
    if isinstance(named, str):
        named = [item for item in named.split(",") if item.strip()]
    return None if named is None else {int(item) for item in named}


def _has_experts(config: Mapping[str, Any], index: int) -> bool:
    return (
        _by_frequency(config, index)
        and _by_sparse_step(config, index)
        and _by_period(config, index)
        and _by_interval(config, index)
    )


def _by_frequency(config: Mapping[str, Any], index: int) -> bool:
    # Layers that route by a hash of the token are counted into the dense ones, but have experts.
    first = (config.get("first_k_dense_replace") or 0) - (config.get("num_hash_layers") or 0)
    first = max(first, config.get("num_dense_layers") or 0)
    return bool(index >= first and index % int(config.get("moe_layer_freq") or 1) == 0)


def _by_sparse_step(config: Mapping[str, Any], index: int) -> bool:
    step = config.get("decoder_sparse_step")
    step = 1 if step is None else step
    dense = config.get("mlp_only_layers") or ()
    return step > 0 and (index + 1) % step == 0 and index not in dense


def _by_period(config: Mapping[str, Any], index: int) -> bool:
    step = config.get("interleave_moe_layer_step")
    if step is not None and not (step > 0 and (index + 1) % step == 0):
        return False
    period = config.get("expert_layer_period") or 1
    return bool(index % period == (config.get("expert_layer_offset") or 0) % period)


def _by_interval(config: Mapping[str, Any], index: int) -> bool:
    start = _smallest(config.get("moe_layer_start_index"), 0)
    end = _largest(config.get("moe_layer_end_index"), index)
    interval = config.get("moe_layer_interval") or 1
    return start <= index <= end and (index + 1) % interval == 0


def _smallest(value: Any, default: int) -> int:
    return min(value) if isinstance(value, list) else default if value is None else int(value)


def _largest(value: Any, default: int) -> int:
    if isinstance(value, list):
        value = max(value)
    # -1 stands for the last layer.
    return default if value is None or value < 0 else int(value)
