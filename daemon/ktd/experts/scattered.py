"""A tensor of experts whose matrices lie in several places, as they do in a checkpoint's files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch


@dataclass(frozen=True, slots=True)
class ScatteredTensor:
    """What would be a contiguous tensor ``[E, rows, columns]``, or ``[E, rows]`` of scales.

    Attributes:
        shape: Of that tensor.
        dtype: Of its elements.
        pieces: The parts of each expert, views ``[rows, columns]`` on the CPU whose rows are
            contiguous; gate and up are two. They keep alive what they look into.
        side_by_side: Parts share the rows, each with its own columns, instead of following one
            another.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: tuple[tuple[torch.Tensor, ...], ...]
    side_by_side: bool = False

    def parts(self, expert: int, whole: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Each piece of an expert, beside the view of ``whole`` that it would fill.

        Args:
            expert: Its index.
            whole: A tensor of one expert, of the shape that follows E.
        """
        matrix = whole.view(self.shape[1], -1)
        found, at = [], 0
        for piece in self.pieces[expert]:
            dim = 1 if self.side_by_side else 0
            found.append((matrix.narrow(dim, at, piece.shape[dim]), piece))
            at += piece.shape[dim]
        return found

    def lines(self, *, interleaved: bool) -> list[tuple[int, int]]:
        """Address and pitch in bytes of each projection's lines, expert by expert.

        Args:
            interleaved: A piece holds the rows of gate and up in turn.
        """
        found = []
        for piece in (piece for expert in self.pieces for piece in expert):
            address = piece.data_ptr()
            # A single row has no stride that means anything.
            columns = piece.shape[1] if piece.shape[0] == 1 else piece.stride(0)
            pitch = columns * piece.element_size()
            if interleaved:
                found += [(address, 2 * pitch), (address + pitch, 2 * pitch)]
            else:
                found.append((address, pitch))
        return found


ExpertTensor: TypeAlias = torch.Tensor | ScatteredTensor


def scattered(
    tensors: Sequence[Sequence[torch.Tensor]], shape: Sequence[int], *, side_by_side: bool = False
) -> ScatteredTensor:
    """Puts pieces together.

    Raises:
        ValueError: One is not as :class:`ScatteredTensor` says, or they do not make up the shape.
    """
    experts, rows = shape[:2]
    columns = 1
    for size in shape[2:]:
        columns *= size
    if len(tensors) != experts:
        raise ValueError(f"pieces of {len(tensors)} experts do not make a tensor of {experts}")
    dtype = tensors[0][0].dtype
    for pieces in tensors:
        for piece in pieces:
            if piece.dim() != 2 or not piece.is_cpu or piece.dtype != dtype:  # noqa: PLR2004 - a matrix
                raise ValueError(
                    f"a piece must be a {dtype} CPU matrix, not {piece.dtype} of shape "
                    f"{list(piece.shape)} on {piece.device}"
                )
            if piece.shape[1] > 1 and piece.stride(1) != 1:
                raise ValueError("the rows of a piece must be contiguous")
        sizes = [[piece.shape[dim] for piece in pieces] for dim in (0, 1)]
        made = (sizes[0][0], sum(sizes[1])) if side_by_side else (sum(sizes[0]), sizes[1][0])
        even = len(set(sizes[0 if side_by_side else 1])) == 1
        if made != (rows, columns) or not even:
            raise ValueError(
                f"pieces of {[list(piece.shape) for piece in pieces]} do not make {list(shape[1:])}"
            )
    return ScatteredTensor(
        tuple(shape), dtype, tuple(map(tuple, tensors)), side_by_side=side_by_side
    )
