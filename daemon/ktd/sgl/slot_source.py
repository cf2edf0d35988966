"""What slots are filled from: the complete host copy of a layer's experts, and how it gets there.

A source hands out the filling of one slot in parts, each a row of equal units that can be written
in pieces of any length: the copier keeps its rate with them and knows nothing of formats.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from ktd.cuda.driver import copy_async
from ktd.experts import _native
from ktd.experts.scattered import ExpertTensor, ScatteredTensor
from ktd.experts.weights import WeightFormat


class SlotPart(Protocol):
    """One tensor of a slot and what is written into it."""

    @property
    def units(self) -> int:
        """How many units are written."""
        ...

    @property
    def unit_bytes(self) -> int:
        """Bytes of a unit in the slot."""
        ...

    def fill(self, start: int, count: int) -> None:
        """Writes ``count`` units from ``start`` on."""
        ...


class SlotSource(Protocol):
    """All experts of one layer in host memory, complete for as long as the engine lives."""

    @property
    def expert_bytes(self) -> int:
        """Bytes of one expert in host memory."""
        ...

    def parts(self, expert: int, slot: Mapping[str, torch.Tensor]) -> tuple[SlotPart, ...]:
        """What makes ``slot``, tensors by parameter name, hold ``expert``."""
        ...


@dataclass(frozen=True, slots=True)
class CopiedElements:
    """A tensor of the slot is the store's, element by element."""

    destination: torch.Tensor
    source: torch.Tensor

    @property
    def units(self) -> int:
        """Elements."""
        return self.source.numel()

    @property
    def unit_bytes(self) -> int:
        """Of an element."""
        return self.source.element_size()

    def fill(self, start: int, count: int) -> None:
        """Copies; onto a GPU, on the current stream, without waiting."""
        if self.destination.is_cuda:
            begin = start * self.unit_bytes
            copy_async(
                self.destination.data_ptr() + begin,
                self.source.data_ptr() + begin,
                count * self.unit_bytes,
                torch.cuda.current_stream().cuda_stream,
            )
            return
        end = start + count
        self.destination.view(-1)[start:end].copy_(self.source.view(-1)[start:end])


@dataclass(frozen=True, slots=True)
class CopiedRows:
    """Rows of a matrix of the slot are the store's, whose rows may lie apart."""

    destination: torch.Tensor
    source: torch.Tensor

    @property
    def units(self) -> int:
        """Rows."""
        return self.source.shape[0]

    @property
    def unit_bytes(self) -> int:
        """Of a row."""
        return self.source.shape[1] * self.source.element_size()

    def fill(self, start: int, count: int) -> None:
        """Copies; onto a GPU, on the current stream."""
        end = start + count
        self.destination[start:end].copy_(self.source[start:end], non_blocking=True)


@dataclass(frozen=True, slots=True)
class DequantisedRows:
    """A bf16 matrix ``[rows, columns]`` of the slot holds the values of the store's quantised one.

    All tensors are contiguous on the CPU; weights and scales are as ``_native.quantise`` writes
    them.
    """

    destination: torch.Tensor
    weights: torch.Tensor
    scale: torch.Tensor
    format: WeightFormat

    @property
    def units(self) -> int:
        """Rows."""
        return self.destination.shape[0]

    @property
    def unit_bytes(self) -> int:
        """Of a row."""
        return self.destination.shape[1] * self.destination.element_size()

    def fill(self, start: int, count: int) -> None:
        """Dequantises in the calling thread."""
        _native.dequantise(
            self.weights[start].data_ptr(),
            self.scale[start].data_ptr(),
            self.format.value,
            count,
            self.destination.shape[1],
            self.destination[start].data_ptr(),
        )


@dataclass(frozen=True, slots=True)
class PlainSource:
    """Slots hold experts as host memory does.

    Attributes:
        tensors: ``[E, …]`` by parameter name.
    """

    tensors: Mapping[str, ExpertTensor]

    @property
    def expert_bytes(self) -> int:
        """Of all tensors."""
        return bytes_of_one(self.tensors)

    def parts(self, expert: int, slot: Mapping[str, torch.Tensor]) -> tuple[SlotPart, ...]:
        """A copy of each tensor, piece by piece where it is scattered."""
        found: list[SlotPart] = []
        for name, tensor in self.tensors.items():
            if isinstance(tensor, ScatteredTensor):
                found += [CopiedRows(*part) for part in tensor.parts(expert, slot[name])]
            else:
                found.append(CopiedElements(slot[name], tensor[expert]))
        return tuple(found)


@dataclass(frozen=True, slots=True)
class QuantisedSource:
    """Slots hold the values of experts that host memory holds quantised.

    Attributes:
        tensors: ``[E, …]``: weights by parameter name, scales by that name and ``_scale``.
        format: Of these.
    """

    tensors: Mapping[str, torch.Tensor]
    format: WeightFormat

    @property
    def expert_bytes(self) -> int:
        """Of weights and scales."""
        return bytes_of_one(self.tensors)

    def parts(self, expert: int, slot: Mapping[str, torch.Tensor]) -> tuple[SlotPart, ...]:
        """Each matrix of the slot, row by row."""
        return tuple(
            DequantisedRows(
                matrix,
                self.tensors[name][expert],
                self.tensors[f"{name}_scale"][expert],
                self.format,
            )
            for name, matrix in slot.items()
        )


def bytes_of_one(tensors: Mapping[str, ExpertTensor]) -> int:
    """Bytes of one expert, or one slot, of tensors that have these first."""
    return sum(math.prod(t.shape[1:]) * t.dtype.itemsize for t in tensors.values())
