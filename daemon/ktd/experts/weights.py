"""One layer's experts in host memory: a format, its tensors, and what lies between the products.

The layouts are those of the checkpoints (csrc/weight_format.h); nothing is repacked.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

import torch

from ktd.experts.scattered import ExpertTensor, ScatteredTensor

FP8_BLOCK = 128
MXFP4_GROUP = 32
_NIBBLES = 8  # in an int32

_Shape: TypeAlias = tuple[int, ...]


class WeightFormat(StrEnum):
    """How experts are stored; E experts of I x H and H x I, groups of g inputs under one scale."""

    BF16 = "bf16"  # w13 [E, 2I, H], w2 [E, H, I]
    FP8_BLOCK = "fp8_block"  # E4M3 of these shapes, float32 scale for 128 x 128; E4M3 activations
    FP8_CHANNEL = "fp8_channel"  # E4M3, float32 scale for each row; E4M3 activations
    INT8 = "int8"  # int8, float32 scale for each row; int8 activations (W8A8)
    INT8_WEIGHT = "int8_weight"  # the same weights, bf16 activations (W8A16)
    INT4 = "int4"  # compressed-tensors pack-quantized, symmetric: int32 [E, 2I, H/8]
    MXFP4 = "mxfp4"  # uint8 [E, 2I, H/2], E8M0 scale for 32 inputs
    GPTQ = "gptq"  # int32 [E, H/8, 2I], zero points [E, H/g, 2I/8]
    AWQ = "awq"  # int32 [E, H, 2I/8], zero points as GPTQ's


class ActivationKind(StrEnum):
    """The curve that gates."""

    SWISH = "swish"
    GELU = "gelu"
    GELU_TANH = "gelu_tanh"


@dataclass(frozen=True, slots=True)
class Activation:
    """What lies between an expert's two products.

    With ``SWISH``: ``g * sigmoid(alpha * g) * (u + beta)``, where ``g = min(gate, limit)`` and
    ``u`` is up clamped to ``[-limit, limit]``. SiLU is the default; gpt-oss has alpha 1.702, limit
    7 and beta 1. The other kinds take no parameters.
    """

    kind: ActivationKind = ActivationKind.SWISH
    alpha: float = 1.0
    limit: float = float("inf")
    beta: float = 0.0


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    """The experts of one layer; tensors are contiguous, on the CPU, with the expert first.

    Weights, scales and zero points may be scattered instead: gate and up are two pieces, or one
    where they are interleaved.

    Attributes:
        format: Layout of the tensors; ``WeightFormat`` gives their shapes.
        w13: Gate rows, then up rows (outputs, in the column-major formats).
        w2: Down.
        w13_scale, w2_scale: Scales; None for bf16.
        w13_zeros, w2_zeros: Zero points of GPTQ and AWQ.
        w13_bias, w2_bias: bf16 ``[E, 2I]`` and ``[E, H]``, or None.
        interleaved: Gate and up alternate row by row (gpt-oss) instead of following each other.
        activation: Between the products.
        routed_scale: Multiplies every router weight.
        weights_before_input: The router weight multiplies gate and up instead of the output.
    """

    format: WeightFormat
    w13: ExpertTensor
    w2: ExpertTensor
    w13_scale: ExpertTensor | None = None
    w2_scale: ExpertTensor | None = None
    w13_zeros: ExpertTensor | None = None
    w2_zeros: ExpertTensor | None = None
    w13_bias: torch.Tensor | None = None
    w2_bias: torch.Tensor | None = None
    interleaved: bool = False
    activation: Activation = Activation()
    routed_scale: float = 1.0
    weights_before_input: bool = False

    @property
    def num_experts(self) -> int:
        """E."""
        return self.w2.shape[0]

    @property
    def hidden(self) -> int:
        """H."""
        if self.format is WeightFormat.GPTQ:
            return self.w2.shape[2]
        return self.w2.shape[2] * _NIBBLES if self.format is WeightFormat.AWQ else self.w2.shape[1]

    @property
    def intermediate(self) -> int:
        """I, this rank's shard."""
        inputs = self.w2.shape[1 if self.format in COLUMN_MAJOR else 2]
        return inputs * _INPUTS_PER_ELEMENT.get(self.format, 1)

    @property
    def group(self) -> int:
        """Inputs under one scale; 0 where the format does not say it by a tensor's shape."""
        if self.w13_scale is None or self.format not in _GROUPED:
            return 0
        groups = self.w13_scale.shape[1 if self.format in COLUMN_MAJOR else 2]
        return self.hidden // max(groups, 1)

    def check(self) -> None:
        """Compares every tensor with what the format wants.

        Raises:
            ValueError: One is not as described; the sentence names it.
        """
        dimensions = len(self.w13.shape), len(self.w2.shape)
        if dimensions != (3, 3):
            raise ValueError(
                f"w13 and w2 need 3 dimensions, not {dimensions[0]} and {dimensions[1]}"
            )
        experts, hidden, inner = self.num_experts, self.hidden, self.intermediate
        first = self._shapes(2 * inner, hidden, parts=2)
        second = self._shapes(hidden, inner, parts=1)
        dtypes = _DTYPES[self.format]
        for name, shapes in (("w13", first), ("w2", second)):
            _check(getattr(self, name), name, dtypes.weights, shapes.weights)
            _check(getattr(self, f"{name}_scale"), f"{name}_scale", dtypes.scales, shapes.scales)
            _check(getattr(self, f"{name}_zeros"), f"{name}_zeros", dtypes.zeros, shapes.zeros)
        for name, width in (("w13_bias", 2 * inner), ("w2_bias", hidden)):
            if getattr(self, name) is not None:
                _check(getattr(self, name), name, (torch.bfloat16,), (experts, width))
        if (self.w13_bias is None) != (self.w2_bias is None):
            raise ValueError("experts have both biases or none")

    def _shapes(self, rows: int, columns: int, *, parts: int) -> _Shapes:
        """Shapes of one of the two tensors; ``parts`` projections share its rows."""
        e, g = self.num_experts, max(self.group, 1)
        zeros = (e, columns // g, rows // _NIBBLES)
        by_format = {
            WeightFormat.BF16: _Shapes((e, rows, columns)),
            WeightFormat.FP8_BLOCK: _Shapes(
                (e, rows, columns),
                (e, parts * -(-rows // parts // FP8_BLOCK), -(-columns // FP8_BLOCK)),
            ),
            WeightFormat.INT4: _Shapes((e, rows, columns // _NIBBLES), (e, rows, columns // g)),
            WeightFormat.MXFP4: _Shapes((e, rows, columns // 2), (e, rows, columns // MXFP4_GROUP)),
            WeightFormat.GPTQ: _Shapes(
                (e, columns // _NIBBLES, rows), (e, columns // g, rows), zeros
            ),
            WeightFormat.AWQ: _Shapes(
                (e, columns, rows // _NIBBLES), (e, columns // g, rows), zeros
            ),
        }
        return by_format.get(self.format, _Shapes((e, rows, columns), (e, rows)))

    @property
    def scattered(self) -> dict[str, list[tuple[int, int]]]:
        """Address and pitch of each projection's lines, by the field that is scattered."""
        fields = ("w13", "w2", "w13_scale", "w2_scale", "w13_zeros", "w2_zeros")
        found = {}
        for name in fields:
            tensor = getattr(self, name)
            if isinstance(tensor, ScatteredTensor):
                two = self.interleaved and name.startswith("w13")
                found[name] = tensor.lines(interleaved=two)
        return found

    @property
    def scale_type(self) -> str:
        """Name of the scales' type for the extension; empty without scales."""
        return "" if self.w13_scale is None else _SCALE_TYPES[self.w13_scale.dtype]


def refuse_act_order(g_idx: torch.Tensor, group: int) -> None:
    """Refuse a GPTQ checkpoint whose inputs were put in another order before they were grouped.

    Args:
        g_idx: The group of each input, int32 ``[..., inputs]``, as the checkpoint has it.
        group: Inputs under one scale.

    Raises:
        ValueError: Some input is not in the group of its place.
    """
    places = torch.arange(g_idx.shape[-1], device=g_idx.device) // group
    if bool((g_idx != places).any()):
        raise ValueError(
            "the experts were quantised by GPTQ with act-order (desc_act): their inputs are out of "
            "order, which the CPU kernels do not compute; use a checkpoint made with desc_act=false"
        )


@dataclass(frozen=True, slots=True)
class _Shapes:
    weights: _Shape
    scales: _Shape | None = None
    zeros: _Shape | None = None


@dataclass(frozen=True, slots=True)
class _Dtypes:
    weights: tuple[torch.dtype, ...]
    scales: tuple[torch.dtype, ...] = ()
    zeros: tuple[torch.dtype, ...] = ()


_FLOATS = (torch.bfloat16, torch.float16, torch.float32)
_E8M0 = (torch.uint8, torch.float8_e8m0fnu)
_DTYPES = {
    WeightFormat.BF16: _Dtypes((torch.bfloat16,)),
    WeightFormat.FP8_BLOCK: _Dtypes((torch.float8_e4m3fn,), (torch.float32,)),
    WeightFormat.FP8_CHANNEL: _Dtypes((torch.float8_e4m3fn,), (torch.float32,)),
    WeightFormat.INT8: _Dtypes((torch.int8,), (torch.float32,)),
    WeightFormat.INT8_WEIGHT: _Dtypes((torch.int8,), (torch.float32,)),
    WeightFormat.INT4: _Dtypes((torch.int32,), _FLOATS),
    WeightFormat.MXFP4: _Dtypes((torch.uint8,), _E8M0),
    WeightFormat.GPTQ: _Dtypes((torch.int32,), _FLOATS, (torch.int32,)),
    WeightFormat.AWQ: _Dtypes((torch.int32,), _FLOATS, (torch.int32,)),
}
_SCALE_TYPES = {
    torch.float32: "float32",
    torch.bfloat16: "bf16",
    torch.float16: "float16",
    torch.uint8: "e8m0",
    torch.float8_e8m0fnu: "e8m0",
}
COLUMN_MAJOR = (WeightFormat.GPTQ, WeightFormat.AWQ)
_GROUPED = (WeightFormat.INT4, *COLUMN_MAJOR)
_INPUTS_PER_ELEMENT = {
    WeightFormat.INT4: _NIBBLES,
    WeightFormat.MXFP4: 2,
    WeightFormat.GPTQ: _NIBBLES,
}


def _check(
    tensor: ExpertTensor | None, name: str, dtypes: tuple[torch.dtype, ...], shape: _Shape | None
) -> None:
    if shape is None:
        if tensor is not None:
            raise ValueError(f"this format has no {name}")
        return
    if tensor is None:
        raise ValueError(f"this format needs {name} of shape {list(shape)}")
    fits = tuple(tensor.shape) in (shape, (*shape, 1))  # scales of rows may be columns
    kinds = " or ".join(str(dtype) for dtype in dtypes)
    if isinstance(tensor, ScatteredTensor):
        if not (fits and tensor.dtype in dtypes):
            raise ValueError(
                f"{name} must be {kinds} of shape {list(shape)}, not {tensor.dtype} of shape "
                f"{list(tensor.shape)}"
            )
        return
    if not (fits and tensor.dtype in dtypes and tensor.is_contiguous() and tensor.is_cpu):
        order = "contiguous" if tensor.is_contiguous() else "not contiguous"
        raise ValueError(
            f"{name} must be a contiguous {kinds} CPU tensor of shape {list(shape)}, not {order} "
            f"{tensor.dtype} of shape {list(tensor.shape)} on {tensor.device}"
        )
