"""A parameter of SGLang's whose bytes stay in the checkpoint's files, for ``--host-memory mmap``.

SGLang's loader copies rows of a file's tensor into the parameter. Where such a copy would change
nothing but the place of whole projections, it is noted instead of done, and the projection is read
where the file has it. Anything else is copied, into memory that appears only then.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ktd.experts.scattered import ExpertTensor, scattered
from ktd.experts.store import HostStore
from ktd.experts.weights import COLUMN_MAJOR
from ktd.sgl.expert_format import ExpertFormat, FormatRefused
from ktd.sgl.host_parameter import like

_WEIGHTS = ("w13", "w2")
_CAN_BE_SCATTERED = (*_WEIGHTS, "w13_scale", "w2_scale", "w13_zeros", "w2_zeros")


class MappedParameter:
    """Notes where SGLang's loader would copy from; see :class:`ktd.sgl.expert_loader.Place`.

    Args:
        meta: SGLang's parameter.
        tensor: Memory ``[E, rows, …]`` for what cannot stay in a file, zeroed and not there yet.
        parts: Pieces of an expert: 2 for gate and up, unless they are interleaved.
        side_by_side: Pieces divide the columns instead of the rows.
        weights: What the format calls the experts, if this parameter has their weights: these must
            stay in the file. None: scales, which may be copied.
    """

    def __init__(
        self,
        meta: nn.Parameter,
        tensor: torch.Tensor,
        *,
        parts: int,
        side_by_side: bool,
        weights: str | None,
    ) -> None:
        self._parameter = like(meta, tensor)
        self._shape, self._dtype = tuple(tensor.shape), tensor.dtype
        self._parts = parts
        self._side_by_side = side_by_side
        self._weights = weights
        self._kept: dict[tuple[int, int], torch.Tensor] = {}
        self._settled: ExpertTensor | None = None
        self.copied_bytes = 0

    def begin(self, _shard: str | None) -> nn.Parameter:
        """The memory; what is kept in a file leaves it untouched."""
        return self._parameter

    def arrived(self, parameter: nn.Parameter, expert: int | None, shard: str | None) -> None:
        """It is where it belongs."""

    def end(self) -> None:
        """Nothing was taken."""

    def tensors(self, name: str) -> dict[str, ExpertTensor]:
        """One: the memory, and pieces of files once :meth:`settle` was called."""
        if self._settled is not None:
            return {name: self._settled}
        return {name: self._parameter.data}

    def keep(self, destination: torch.Tensor, source: torch.Tensor) -> bool:
        """Takes a copy of SGLang's loader as a note.

        Args:
            destination: View of the memory.
            source: View of a file, of the same shape and type.

        Returns:
            Whether ``source`` will be read where it lies. False: it must be copied.
        """
        memory = self._parameter.data
        experts, rows = self._shape[:2]
        columns = memory[0, 0].numel()
        if destination.untyped_storage().data_ptr() != memory.untyped_storage().data_ptr():
            return False
        to, of = (_three(view, columns) for view in (destination, source))
        if to is None or of is None or (of.shape[2] > 1 and of.stride(2) != 1):
            return False
        first = (to.data_ptr() - memory.data_ptr()) // memory.element_size()
        expert, row, column = first // (rows * columns), first // columns % rows, first % columns
        strides = (rows * columns, columns, 1)
        steps = zip(to.shape, to.stride(), strides, strict=True)
        if any(size > 1 and stride != wanted for size, stride, wanted in steps):
            return False
        pieces = self._whole_pieces(row, column, to.shape[1], to.shape[2], (rows, columns))
        if pieces is None or expert + to.shape[0] > experts:
            return False
        for i in range(to.shape[0]):
            for part, (dim, start, length) in pieces.items():
                self._kept[expert + i, part] = of[i].narrow(dim, start, length)
        return True

    def _whole_pieces(
        self, row: int, column: int, rows: int, columns: int, whole: tuple[int, int]
    ) -> dict[int, tuple[int, int, int]] | None:
        """Dimension, start and length of each piece within a rectangle; None if one is cut."""
        dim = 1 if self._side_by_side else 0
        at, size = ((row, rows), (column, columns))[dim]
        across = ((column, columns), (row, rows))[dim]
        length, rest = divmod(whole[dim], self._parts)
        if rest or across != (0, whole[1 - dim]) or at % length or size % length or not size:
            return None
        return {at // length + i: (dim, i * length, length) for i in range(size // length)}

    def rearranged(self, weight_name: str) -> None:
        """SGLang's loader did something else with a file's tensor than copy whole pieces of it.

        Raises:
            FormatRefused: It was weights.
        """
        if self._weights is not None:
            raise FormatRefused(
                f"--host-memory mmap needs experts that lie in the checkpoint's files as they are "
                f"computed, but SGLang rearranges or pads {weight_name} ({self._weights}) while it "
                "loads it; leave --host-memory out"
            )

    def settle(self) -> None:
        """Everything has come: gives back the memory that nothing was copied into."""
        if self._settled is not None:
            return
        memory = self._parameter.data
        self._parameter.data = memory.new_empty(0)
        if not self._kept:
            self._settled = memory
            self.copied_bytes = memory.numel() * memory.element_size()
            return
        dim = 1 if self._side_by_side else 0
        pieces = []
        for expert in range(self._shape[0]):
            matrix = memory[expert].view(self._shape[1], -1)
            length = matrix.shape[dim] // self._parts
            row = []
            for part in range(self._parts):
                piece = self._kept.get((expert, part))
                if piece is None:
                    piece = matrix.narrow(dim, part * length, length)
                    self.copied_bytes += piece.numel() * piece.element_size()
                row.append(piece)
            pieces.append(row)
        self._kept.clear()
        self._settled = scattered(pieces, self._shape, side_by_side=self._side_by_side)


def _three(view: torch.Tensor, columns: int) -> torch.Tensor | None:
    """A view as ``[experts, rows, columns]``; rows of scales have one column."""
    if columns == 1 and view.shape[-1:] != (1,):
        view = view.unsqueeze(-1)
    while view.dim() < 3:  # noqa: PLR2004 - experts, rows, columns
        view = view.unsqueeze(0)
    return view if view.dim() == 3 else None  # noqa: PLR2004 - the same


@dataclass(frozen=True, slots=True)
class Mapper:
    """Makes the parameters of a layer that may stay in files.

    Attributes:
        store: Where memory for the rest comes from.
        format: Of the checkpoint.
        interleaved: Gate and up rows alternate.
    """

    store: HostStore
    format: ExpertFormat
    interleaved: bool

    def parameter(self, name: str, meta: nn.Parameter, shards: int) -> MappedParameter | None:
        """One for ``meta``, which is called ``name``; None for what is small and always copied."""
        role = self.format.fields.get(name, "")
        if role not in _CAN_BE_SCATTERED:
            return None
        return MappedParameter(
            meta,
            self.store.allocate(tuple(meta.shape), meta.dtype),
            parts=1 if self.interleaved else shards,
            side_by_side=self.format.weights in COLUMN_MAJOR,
            weights=self.format.weights if role in _WEIGHTS else None,
        )
