"""The tensors of a checkpoint that is generated: names, types, sizes, and what kind of values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

BLOCK = 128
_BYTES = {"BF16": 2, "F8_E4M3": 1}


class Values(StrEnum):
    """What a tensor holds."""

    WEIGHTS = "weights"  # normal, with the deviation of freshly initialised models
    SCALES = "scales"  # of FP8 blocks, so that scale times weight is as above
    ONES = "ones"
    ZEROS = "zeros"


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor.

    Attributes:
        name: In the checkpoint.
        dtype: Name of its type in safetensors: ``"BF16"`` or ``"F8_E4M3"``.
        shape: As in the checkpoint.
        values: What it holds.
        expert: Belongs to a routed expert.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    values: Values = Values.WEIGHTS
    expert: bool = False

    @property
    def num_bytes(self) -> int:
        """Of the whole tensor."""
        return math.prod(self.shape) * self.itemsize

    @property
    def itemsize(self) -> int:
        """Bytes of one value."""
        return _BYTES[self.dtype]


def linear(
    name: str, outputs: int, inputs: int, *, fp8: bool = False, expert: bool = False
) -> list[Tensor]:
    """The weight of a linear layer called ``name``; in FP8 with a bf16 scale for each block."""
    weight, shape = f"{name}.weight", (outputs, inputs)
    if not fp8:
        return [Tensor(weight, "BF16", shape, expert=expert)]
    scales = (-(-outputs // BLOCK), -(-inputs // BLOCK))
    return [
        Tensor(weight, "F8_E4M3", shape, expert=expert),
        Tensor(f"{weight}_scale_inv", "BF16", scales, Values.SCALES, expert=expert),
    ]


def experts(
    name: str,
    count: int,
    parts: tuple[str, str, str],
    *,
    hidden: int,
    width: int,
    fp8: bool = False,
) -> list[Tensor]:
    """All routed experts of a layer, called ``name.0`` and so on; ``parts``: gate, up, down."""
    gate, up, down = parts
    sizes = ((gate, width, hidden), (up, width, hidden), (down, hidden, width))
    return [
        tensor
        for expert in range(count)
        for part, outputs, inputs in sizes
        for tensor in linear(f"{name}.{expert}.{part}", outputs, inputs, fp8=fp8, expert=True)
    ]


def norm(name: str, size: int, values: Values = Values.ONES) -> Tensor:
    """The weight of a normalisation that leaves what it normalises as it is."""
    return Tensor(f"{name}.weight", "BF16", (size,), values)
