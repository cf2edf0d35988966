"""MXFP4 experts for SGLang's Marlin runner, which wants them larger than their checkpoint has them.

Host memory has an expert as it is; what pads it is added on its way into a slot.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ktd.experts.weights import MXFP4_GROUP

_IN_BYTE = 2  # values of four bits


@dataclass(frozen=True, slots=True)
class Padding:
    """Sizes of an expert without padding.

    Attributes:
        hidden: Inputs of gate and up, outputs of down.
        width: Of a rank's part.
        interleaved: Gate and up rows alternate; otherwise each half is padded by itself.
    """

    hidden: int
    width: int
    interleaved: bool

    def shape(self, role: str) -> tuple[int, ...]:
        """Of one expert's tensor, by its field of ExpertWeights."""
        product, _, part = role.partition("_")
        outputs, inputs = self.hidden, self.width
        if product == "w13":
            outputs, inputs = 2 * self.width, self.hidden
        if part == "bias":
            return (outputs,)
        return outputs, inputs // (MXFP4_GROUP if part == "scale" else _IN_BYTE)

    def write(self, role: str, row: torch.Tensor, padded: torch.Tensor) -> None:
        """Writes an expert's tensor of :meth:`shape` into a larger one; the rest of it stays."""
        if role.startswith("w13") and not self.interleaved:
            row, padded = (x.view(2, -1, *x.shape[1:]) for x in (row, padded))
        padded[tuple(slice(size) for size in row.shape)].copy_(row)
