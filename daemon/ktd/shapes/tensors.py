"""The tensors of a checkpoint that is generated: names, types, sizes, and what kind of values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

BLOCK = 128
GROUP = 128
_BYTES = {"BF16": 2, "F8_E4M3": 1, "I32": 4}
_IN_INT32 = 8  # values of four bits


class Form(StrEnum):
    """How weights of a model are kept."""

    BF16 = "bf16"
    FP8 = "fp8"  # in blocks of 128 x 128
    INT4 = "int4"  # of experts, in groups of 128 inputs, as compressed-tensors packs them


class Values(StrEnum):
    """What a tensor holds."""

    WEIGHTS = "weights"  # normal, with the deviation of freshly initialised models; or any nibbles
    SCALES = "scales"  # of FP8 blocks, so that scale times weight is as above
    GROUP_SCALES = "group scales"  # of INT4, the same
    ONES = "ones"
    ZEROS = "zeros"


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor.

    Attributes:
        name: In the checkpoint.
        dtype: Name of its type in safetensors: ``"BF16"``, ``"F8_E4M3"`` or ``"I32"``.
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
    name: str, outputs: int, inputs: int, *, form: Form = Form.BF16, expert: bool = False
) -> list[Tensor]:
    """The weight of a linear layer called ``name``, with a bf16 scale for each block or group."""
    weight, shape = f"{name}.weight", (outputs, inputs)
    if form is Form.INT4 and expert:
        packed, scales = (outputs, inputs // _IN_INT32), (outputs, inputs // GROUP)
        return [
            Tensor(f"{weight}_packed", "I32", packed, expert=True),
            Tensor(f"{weight}_scale", "BF16", scales, Values.GROUP_SCALES, expert=True),
        ]
    if form is not Form.FP8:
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
    form: Form = Form.BF16,
) -> list[Tensor]:
    """All routed experts of a layer, called ``name.0`` and so on; ``parts``: gate, up, down."""
    gate, up, down = parts
    sizes = ((gate, width, hidden), (up, width, hidden), (down, hidden, width))
    return [
        tensor
        for expert in range(count)
        for part, outputs, inputs in sizes
        for tensor in linear(f"{name}.{expert}.{part}", outputs, inputs, form=form, expert=True)
    ]


def norm(name: str, size: int, values: Values = Values.ONES) -> Tensor:
    """The weight of a normalisation that leaves what it normalises as it is."""
    return Tensor(f"{name}.weight", "BF16", (size,), values)
