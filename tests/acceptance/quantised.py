"""Models with quantised experts: what ktd makes of them at load, and one that blocks go into."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any


def quantise_experts(model: Any, form: str) -> None:
    """Replaces the experts of Transformers' model by their quantised values, not rounded again."""
    for name, parameter in model.named_parameters():
        if ".mlp.experts." in name:
            for matrix in parameter.data:
                matrix.copy_(quantised_values(matrix, form))


def quantised_values(matrix: Any, form: str) -> Any:
    """Steps times scales of a matrix in float32."""
    import torch

    if form == "int8":
        scale = matrix.abs().amax(1, keepdim=True) / 127
        return torch.where(scale > 0, (matrix / scale).round() * scale, 0)
    groups = matrix.unflatten(1, (-1, 32))
    scale = (groups.abs().amax(2, keepdim=True) / 7.5).bfloat16().float()
    steps = (groups / scale).round().clamp(-8, 7)
    return torch.where(scale > 0, steps * scale, 0).flatten(1)


def written(model: Path, folder: Path, form: str) -> None:
    """Writes the quantised values as a checkpoint in bfloat16, which rounds them once more."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, folder)
    tensors = load_file(model / "model.safetensors")
    for name, tensor in tensors.items():
        if ".mlp.experts." in name:
            tensors[name] = quantised_values(tensor.float(), form).bfloat16()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def widened(model: Path, folder: Path, width: int) -> None:
    """Writes the same model with experts of ``width``: rows and columns of zeros change nothing."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, folder)
    tensors = load_file(model / "model.safetensors")
    for name, tensor in tensors.items():
        side = re.search(r"\.experts\.\d+\.(gate|up|down)_proj", name)
        if side is None:
            continue
        missing = width - tensor.shape[side[1] == "down"]
        padding = (0, missing) if side[1] == "down" else (0, 0, 0, missing)
        tensors[name] = torch.nn.functional.pad(tensor, padding)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["moe_intermediate_size"] = width
    (folder / "config.json").write_text(json.dumps(config))
