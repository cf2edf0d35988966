"""Tiny gpt-oss checkpoints: experts in MXFP4, all of a layer in one tensor; and their reference."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.sgl import tiny_models

_EXPERTS = re.compile(r"\.mlp\.experts\.(gate_up|down)_proj$")
_GROUP = 32
# E2M1 without its sign; the last one is 1.5 * 2^2.
_STEPS = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
_LARGEST_EXPONENT = 2
_BIAS = 127


def build(folder: Path) -> tiny_models.TinyModel:
    """Writes ``folder/quantised`` and ``folder/reference``, the same values in float32."""
    made = tiny_models.build("gpt_oss", folder / "bf16")
    written, values = {}, {}
    for key, tensor in load_file(folder / "bf16/model.safetensors").items():
        if not _EXPERTS.search(key):
            written[key], values[key] = tensor, tensor.float()
            continue
        # Transformers keeps inputs first.
        blocks, scales, value = mxfp4(tensor.float().transpose(1, 2))
        written |= {f"{key}_blocks": blocks, f"{key}_scales": scales}
        values[key] = value.transpose(1, 2).contiguous()
    for name, tensors in (("quantised", written), ("reference", values)):
        shutil.copytree(folder / "bf16", folder / name)
        save_file(tensors, folder / name / "model.safetensors", metadata={"format": "pt"})
    path = folder / "quantised/config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] = {
        "quant_method": "mxfp4",
        "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router"],
    }
    path.write_text(json.dumps(config))
    return made


def mxfp4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Blocks ``[…, K / 32, 16]``, E8M0 scales ``[…, K / 32]`` and values ``[…, K]``, of float32."""
    groups = weight.unflatten(-1, (-1, _GROUP))
    exponent = groups.abs().amax(-1).log2().floor() - _LARGEST_EXPONENT
    scaled = groups / exponent.exp2().unsqueeze(-1)
    codes = (scaled.abs().unsqueeze(-1) - _STEPS).abs().argmin(-1)
    values = _STEPS[codes] * scaled.sign() * exponent.exp2().unsqueeze(-1)
    nibbles = (codes + 8 * (scaled < 0)).to(torch.uint8)
    blocks = nibbles[..., ::2] | nibbles[..., 1::2] << 4
    return blocks, (exponent + _BIAS).to(torch.uint8), values.flatten(-2)
