"""A model whose experts are what ktd makes of them when it quantises them at load, in float32."""

from __future__ import annotations

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
