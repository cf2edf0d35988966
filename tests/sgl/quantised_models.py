"""Tiny checkpoints whose experts are quantised, each in the layout that its format has on disk.

Only the experts: SGLang computes quantised attention and dense layers on GPUs alone. Beside the
checkpoint stands its reference, the same values in float32.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.sgl import tiny_models

_EXPERT = re.compile(r"\.experts\.\d+\.\w+_proj\.weight$")
_BLOCK = 128
_E4M3_MAX = 448.0

# What a projection ``[N, K]`` becomes: tensors by their suffix, and its values in float32.
Quantised = tuple[dict[str, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one format is written.

    Attributes:
        quantise: Of one projection.
        config: ``quantization_config``; gets the modules that are left alone.
    """

    quantise: Callable[[torch.Tensor], Quantised]
    config: Callable[[list[str]], dict[str, Any]]


def build(name: str, folder: Path, *, model: str = "qwen3_moe_quantised") -> tiny_models.TinyModel:
    """Writes ``folder/quantised`` and ``folder/reference``."""
    recipe = RECIPES[name]
    quantised, reference = folder / "quantised", folder / "reference"
    made = tiny_models.build(model, quantised)
    shutil.copytree(quantised, reference)
    tensors = load_file(quantised / "model.safetensors")
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
    return made


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


RECIPES = {
    "fp8_block": Recipe(_fp8_block, _fp8_config),
}
