"""Random experts in every format. A new format is one more small class here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from ktd.experts.weights import FP8_BLOCK, MXFP4_GROUP, Activation, ExpertWeights, WeightFormat
from ktd.shapes.moe import MoeShape

_SPREAD = 0.02  # of a weight, about what trained ones have
_INT4_GROUP = 32  # Kimi-K2's
_GPTQ_GROUP = 128  # and AWQ's
_NIBBLES = 8
_GPT_OSS = Activation(alpha=1.702, limit=7.0, beta=1.0)

Allocate = Callable[[tuple[int, ...], torch.dtype], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Projection:
    """One matrix of one expert: ``[rows, columns]``, outputs by inputs."""

    weights: torch.Tensor
    scale: torch.Tensor | None = None
    zeros: torch.Tensor | None = None


class Format(Protocol):
    """How one expert's matrices look."""

    def draw(self, rows: int, columns: int, parts: int) -> Projection:
        """A random matrix of ``parts`` projections that share ``rows``."""


class Bf16:
    """Plain weights."""

    def draw(self, rows: int, columns: int, parts: int) -> Projection:  # noqa: ARG002 - rows alone
        """See Format."""
        return Projection(torch.randn(rows, columns).mul_(_SPREAD).bfloat16())


class Fp8:
    """E4M3 over its whole range, with scales by block or by row."""

    def __init__(self, *, block: bool) -> None:
        self._block = block

    def draw(self, rows: int, columns: int, parts: int) -> Projection:
        """See Format."""
        weights = torch.randn(rows, columns).mul_(64).clamp_(-448, 448).to(torch.float8_e4m3fn)
        if self._block:
            shape = (parts * -(-rows // parts // FP8_BLOCK), -(-columns // FP8_BLOCK))
            return Projection(weights, _scales(shape, 64))
        return Projection(weights, _scales((rows,), 64))


class Int8:
    """One scale for each row."""

    def draw(self, rows: int, columns: int, parts: int) -> Projection:  # noqa: ARG002 - rows alone
        """See Format."""
        weights = torch.randint(-127, 128, (rows, columns), dtype=torch.int8)
        return Projection(weights, _scales((rows,), 73))


class Int4:
    """Eight nibbles in an int32, bf16 scales."""

    def draw(self, rows: int, columns: int, parts: int) -> Projection:  # noqa: ARG002 - rows alone
        """See Format."""
        scale = _scales((rows, columns // _INT4_GROUP), 4.6).bfloat16()
        return Projection(_bits(rows, columns // _NIBBLES), scale)


class Mxfp4:
    """Two E2M1 in a byte, E8M0 scales."""

    def draw(self, rows: int, columns: int, parts: int) -> Projection:  # noqa: ARG002 - rows alone
        """See Format."""
        weights = torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8)
        exponents = torch.randint(118, 122, (rows, columns // MXFP4_GROUP), dtype=torch.uint8)
        return Projection(weights, exponents)


class Gptq:
    """Columns of nibbles with zero points; AWQ packs along the outputs instead."""

    def __init__(self, *, along_outputs: bool) -> None:
        self._along_outputs = along_outputs

    def draw(self, rows: int, columns: int, parts: int) -> Projection:  # noqa: ARG002 - rows alone
        """See Format."""
        group = _GPTQ_GROUP if columns % _GPTQ_GROUP == 0 else _INT4_GROUP
        packed = (columns, rows // _NIBBLES) if self._along_outputs else (columns // _NIBBLES, rows)
        return Projection(
            _bits(*packed),
            _scales((columns // group, rows), 4.6).half(),
            _bits(columns // group, rows // _NIBBLES),
        )


FORMATS: dict[WeightFormat, Format] = {
    WeightFormat.BF16: Bf16(),
    WeightFormat.FP8_BLOCK: Fp8(block=True),
    WeightFormat.FP8_CHANNEL: Fp8(block=False),
    WeightFormat.INT8: Int8(),
    WeightFormat.INT8_WEIGHT: Int8(),
    WeightFormat.INT4: Int4(),
    WeightFormat.MXFP4: Mxfp4(),
    WeightFormat.GPTQ: Gptq(along_outputs=False),
    WeightFormat.AWQ: Gptq(along_outputs=True),
}
_COLUMN_MAJOR = (WeightFormat.GPTQ, WeightFormat.AWQ)


class ExpertMould:
    """One random expert, of which layers are cast: the values of all experts are the same.

    What is measured does not depend on the values, and drawing gigabytes of them takes minutes.
    """

    def __init__(self, shape: MoeShape, weight_format: WeightFormat) -> None:
        drawn = FORMATS[weight_format]
        w13 = drawn.draw(2 * shape.intermediate, shape.hidden, 2)
        w2 = drawn.draw(shape.hidden, shape.intermediate, 1)
        self._format = weight_format
        self._clamped = shape.clamped
        self._tensors = {
            "w13": w13.weights,
            "w2": w2.weights,
            "w13_scale": w13.scale,
            "w2_scale": w2.scale,
            "w13_zeros": w13.zeros,
            "w2_zeros": w2.zeros,
        }
        if shape.clamped:
            self._tensors["w13_bias"] = torch.randn(2 * shape.intermediate).bfloat16()
            self._tensors["w2_bias"] = torch.randn(shape.hidden).bfloat16()

    @property
    def expert_bytes(self) -> int:
        """Bytes of one expert, scales and zero points included."""
        return sum(tensor.nbytes for tensor in self._tensors.values() if tensor is not None)

    def layer(self, experts: int, allocate: Allocate) -> ExpertWeights:
        """A layer of so many experts, in memory of ``allocate(shape, dtype)``."""
        tensors: dict[str, torch.Tensor] = {}
        for name, one in self._tensors.items():
            if one is not None:
                tensors[name] = allocate((experts, *one.shape), one.dtype)
                _raw(tensors[name]).copy_(_raw(one))
        return ExpertWeights(
            format=self._format,
            w13=tensors["w13"],
            w2=tensors["w2"],
            w13_scale=tensors.get("w13_scale"),
            w2_scale=tensors.get("w2_scale"),
            w13_zeros=tensors.get("w13_zeros"),
            w2_zeros=tensors.get("w2_zeros"),
            w13_bias=tensors.get("w13_bias"),
            w2_bias=tensors.get("w2_bias"),
            interleaved=self._clamped and self._format not in _COLUMN_MAJOR,
            activation=_GPT_OSS if self._clamped else Activation(),
        )


def _raw(tensor: torch.Tensor) -> torch.Tensor:
    # Torch copies its 8-bit floats element by element; as bytes they go in parallel.
    return tensor.view(torch.uint8) if tensor.dtype.itemsize == 1 else tensor


def _scales(shape: tuple[int, ...], largest: float) -> torch.Tensor:
    return torch.rand(shape).add_(0.5).mul_(_SPREAD / largest)


def _bits(*shape: int) -> torch.Tensor:
    return torch.randint(-(1 << 31), 1 << 31, shape, dtype=torch.int32)
