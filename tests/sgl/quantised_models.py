"""Tiny checkpoints whose experts are quantised, each in the layout that its format has on disk.

Only the experts: SGLang computes quantised attention and dense layers on GPUs alone. Beside the
checkpoint stands its reference, the same values in float32.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.sgl import tiny_models

_EXPERT = re.compile(r"\.experts\.\d+\.\w+_proj\.weight$")
_BLOCK = 128
_E4M3_MAX = 448.0
_GROUP = 32
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)

# What a projection ``[N, K]`` becomes: tensors by their suffix, and its values in float32.
Quantised = tuple[dict[str, torch.Tensor], torch.Tensor]
Config = Callable[[list[str]], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one format is written.

    Attributes:
        quantise: Of one projection.
        config: ``quantization_config``; gets the modules that are left alone.
    """

    quantise: Callable[[torch.Tensor], Quantised]
    config: Config


def build(
    name: str,
    folder: Path,
    *,
    model: str = "qwen3_moe_quantised",
    for_gpu: bool = False,
    recipes: Mapping[str, Recipe] | None = None,
) -> tiny_models.TinyModel:
    """Writes ``folder/quantised`` and ``folder/reference`` of a tiny random model."""
    made = tiny_models.build(model, folder / "bf16", for_gpu=for_gpu)
    quantise(name, folder / "bf16", folder, recipes=recipes)
    return made


def quantise(
    name: str, source: Path, folder: Path, *, recipes: Mapping[str, Recipe] | None = None
) -> None:
    """Writes ``folder/quantised`` and ``folder/reference`` of a checkpoint with one weight file."""
    recipe = (RECIPES if recipes is None else recipes)[name]
    quantised, reference = folder / "quantised", folder / "reference"
    for copy in (quantised, reference):
        shutil.copytree(source, copy)
    tensors = load_file(source / "model.safetensors")
    written, values, alone = {}, {}, set()
    for key, tensor in tensors.items():
        module = key.removesuffix(".weight")
        if not _EXPERT.search(key):
            written[key], values[key] = tensor, tensor.float()
            if tensor.dim() > 1:
                alone.add(module)
            continue
        parts, value = recipe.quantise(tensor.float())
        written |= {f"{module}.{suffix}": part.contiguous() for suffix, part in parts.items()}
        values[key] = value.contiguous()
    save_file(written, quantised / "model.safetensors", metadata={"format": "pt"})
    save_file(values, reference / "model.safetensors", metadata={"format": "pt"})
    path = quantised / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] = recipe.config(sorted(alone))
    path.write_text(json.dumps(config))


def _fp8_block(weight: torch.Tensor) -> Quantised:
    rows, columns = weight.shape
    scale = torch.empty(-(-rows // _BLOCK), -(-columns // _BLOCK))
    weights = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    value = torch.empty_like(weight)
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            at = (slice(i * _BLOCK, (i + 1) * _BLOCK), slice(j * _BLOCK, (j + 1) * _BLOCK))
            scale[i, j] = weight[at].abs().max() / _E4M3_MAX
            weights[at] = (weight[at] / scale[i, j]).to(torch.float8_e4m3fn)
            value[at] = weights[at].float() * scale[i, j]
    return {"weight": weights, "weight_scale_inv": scale}, value


def _fp8_config(alone: list[str]) -> dict[str, Any]:
    return {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [_BLOCK, _BLOCK],
        "modules_to_not_convert": alone,
    }


def _rows(weight: torch.Tensor, largest: float, dtype: torch.dtype) -> Quantised:
    """One float32 scale for each row."""
    scale = weight.abs().amax(1, keepdim=True) / largest
    scaled = weight / scale
    weights = (scaled if dtype.is_floating_point else scaled.round()).to(dtype)
    return {"weight": weights, "weight_scale": scale}, weights.float() * scale


def _fp8_channel(weight: torch.Tensor) -> Quantised:
    return _rows(weight, _E4M3_MAX, torch.float8_e4m3fn)


def _int8(weight: torch.Tensor) -> Quantised:
    return _rows(weight, 127.0, torch.int8)


def nibbles(values: torch.Tensor, order: tuple[int, ...] = tuple(range(8))) -> torch.Tensor:
    """int32 ``[R, C / 8]`` of ``[R, C]``: the value ``order[i]`` of eight goes into nibble i."""
    eights = values.to(torch.int64).unflatten(1, (-1, 8))[..., list(order)]
    packed = (eights << (torch.arange(8) * 4)).sum(-1)
    return (packed & 0xFFFFFFFF).to(torch.uint32).view(torch.int32)


def _int4(weight: torch.Tensor) -> Quantised:
    groups = weight.unflatten(1, (-1, _GROUP))
    scale = (groups.abs().amax(2, keepdim=True) / 7).bfloat16().float()
    values = (groups / scale).round().clamp(-8, 7)
    return {
        "weight_packed": nibbles(values.flatten(1) + 8),
        "weight_scale": scale.squeeze(2).bfloat16(),
        "weight_shape": torch.tensor(weight.shape),
    }, (values * scale).flatten(1)


def _asymmetric(
    weight: torch.Tensor, group: int = _GROUP
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Nibbles ``[K / g, g, N]`` of the transposed weight, scales and zeros ``[K / g, N]``."""
    groups = weight.t().unflatten(0, (-1, group))
    least, most = groups.amin(1), groups.amax(1)
    scale = ((most - least) / 15).bfloat16().float()  # as SGLang keeps it, and half holds it too
    zero = (-least / scale).round().clamp(1, 15)
    return (groups / scale[:, None] + zero[:, None]).round().clamp(0, 15), scale, zero


def _gptq(weight: torch.Tensor) -> Quantised:
    values, scale, zero = _asymmetric(weight)
    return {
        "qweight": nibbles(values.flatten(0, 1).t()).t(),
        "scales": scale.half(),
        "qzeros": nibbles(zero - 1),
        "g_idx": (torch.arange(weight.shape[1]) // _GROUP).to(torch.int32),
    }, ((values - zero[:, None]) * scale[:, None]).flatten(0, 1).t()


def _gptq_symmetric(weight: torch.Tensor) -> Quantised:
    groups = weight.t().unflatten(0, (-1, _GROUP))
    # Eight bits of fraction: bf16 holds it as half does.
    scale = (groups.abs().amax(1) / 7).bfloat16().float()
    values = (groups / scale[:, None]).round().clamp(-8, 7)
    return {
        "qweight": nibbles((values + 8).flatten(0, 1).t()).t(),
        "scales": scale.half(),
        "qzeros": nibbles(torch.full_like(scale, 7)),
        "g_idx": (torch.arange(weight.shape[1]) // _GROUP).to(torch.int32),
    }, (values * scale[:, None]).flatten(0, 1).t()


def _awq(weight: torch.Tensor, group: int = _GROUP) -> Quantised:
    values, scale, zero = _asymmetric(weight, group)
    return {
        "qweight": nibbles(values.flatten(0, 1), _AWQ_ORDER),
        "scales": scale.half(),
        "qzeros": nibbles(zero, _AWQ_ORDER),
    }, ((values - zero[:, None]) * scale[:, None]).flatten(0, 1).t()


def _compressed_tensors(layout: str, weights: dict[str, Any], activations: Any) -> Config:
    def config(alone: list[str]) -> dict[str, Any]:
        group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
        return {
            "quant_method": "compressed-tensors",
            "format": layout,
            "config_groups": {"group_0": group},
            "ignore": alone,
        }

    return config


def _eight_bits(kind: str, strategy: str, *, dynamic: bool) -> dict[str, Any]:
    return {
        "num_bits": 8,
        "type": kind,
        "strategy": strategy,
        "symmetric": True,
        "dynamic": dynamic,
    }


_INT4 = {
    "num_bits": 4,
    "type": "int",
    "strategy": "group",
    "group_size": _GROUP,
    "symmetric": True,
    "dynamic": False,
}


def _gptq_config(alone: list[str]) -> dict[str, Any]:
    # SGLang asks for merged modules by their own names.
    rules = {f"-:.*{part}.*": {} for part in ("self_attn", "lm_head", "mlp.gate$")}
    return {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": _GROUP,
        "sym": False,
        "desc_act": False,
        "dynamic": rules,
    }


def _awq_config(alone: list[str]) -> dict[str, Any]:
    return {
        "quant_method": "awq",
        "bits": 4,
        "group_size": _GROUP,
        "zero_point": True,
        "modules_to_not_convert": ["self_attn", "lm_head", "mlp.gate"],
    }


RECIPES = {
    "awq": Recipe(_awq, _awq_config),
    "fp8_block": Recipe(_fp8_block, _fp8_config),
    "fp8_channel": Recipe(
        _fp8_channel,
        _compressed_tensors(
            "float-quantized",
            _eight_bits("float", "channel", dynamic=False),
            _eight_bits("float", "token", dynamic=True),
        ),
    ),
    "gptq": Recipe(_gptq, _gptq_config),
    "int4": Recipe(_int4, _compressed_tensors("pack-quantized", _INT4, None)),
    "int8": Recipe(
        _int8,
        _compressed_tensors(
            "int-quantized",
            _eight_bits("int", "channel", dynamic=False),
            _eight_bits("int", "token", dynamic=True),
        ),
    ),
}
# These quantise what they multiply by the weights too, which the float32 reference does not: they
# must be far nearer to it than a model without experts.
QUANTISED_ACTIVATIONS = ("fp8_block", "fp8_channel", "int8")
NEAR = 1 / 8
# What SGLang computes on a GPU out of slots.
_MARLIN_GROUP = 128  # with zero points
GPU_RECIPES = RECIPES | {
    "awq": Recipe(
        lambda weight: _awq(weight, _MARLIN_GROUP),
        lambda alone: _awq_config(alone) | {"group_size": _MARLIN_GROUP},
    ),
    "gptq": Recipe(_gptq_symmetric, lambda alone: _gptq_config(alone) | {"sym": True}),
}
