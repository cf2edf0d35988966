"""A model whose experts are what ktd makes of them when it quantises them at load, in float32."""

from __future__ import annotations

from typing import Any

_NAMES = {"int8": "int8_weight", "int4": "int4"}


def quantise_experts(model: Any, form: str) -> None:
    """Replaces the experts of Transformers' model by their quantised values, not rounded again."""
    for name, parameter in model.named_parameters():
        if ".mlp.experts." in name:
            for matrix in parameter.data:
                matrix.copy_(quantised_values(matrix, form))


def quantised_values(matrix: Any, form: str) -> Any:
    """Steps times scales of a matrix that bf16 holds exactly; float32 of the same shape."""
    import torch

    from ktd.experts import _native

    rows, columns = matrix.shape
    source = matrix.bfloat16().contiguous()
    assert torch.equal(source.float(), matrix)
    nibbles = form == "int4"
    weights = torch.empty(
        rows, columns // 8 if nibbles else columns, dtype=torch.int32 if nibbles else torch.int8
    )
    scale = (
        torch.empty(rows, columns // 32, dtype=torch.bfloat16) if nibbles else torch.empty(rows, 1)
    )
    _native.quantise(
        source.data_ptr(),
        "bf16",
        0,
        rows,
        columns,
        _NAMES[form],
        weights.data_ptr(),
        scale.data_ptr(),
    )
    if not nibbles:
        return weights.float() * scale
    steps = (weights[:, :, None] >> torch.arange(0, 32, 4)) & 15
    return (steps.reshape(rows, columns) - 8).float() * scale.float().repeat_interleave(32, 1)
