"""What slots are filled from: the complete host copy of a layer's experts, and how it gets there.

A source hands out the filling of one slot in parts, each a row of equal units that can be written
in pieces of any length: the copier keeps its rate with them and knows nothing of formats.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from ktd.experts import _native
from ktd.experts.scattered import ExpertTensor, ScatteredTensor
from ktd.experts.weights import WeightFormat

# int64 [copies, 3]: addresses of destination and source, and bytes.
Copies: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Places:
    """Where the experts of a layer and its slots lie, tensor by tensor.

    Attributes:
        to: Address of slot 0.
        to_pitch: Bytes from one slot to the next.
        source: Address of expert 0.
        source_pitch: Bytes from one expert to the next.
        size: Bytes of one.
    """

    to: int
    to_pitch: int
    source: int
    source_pitch: int
    size: int


# numpy does not know all of torch's types.
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class SlotPart(Protocol):
    """One tensor of a slot and what is written into it, as a row of units."""

    @property
    def units(self) -> int:
        """How many units are written."""
        ...

    @property
    def unit_bytes(self) -> int:
        """Bytes of a unit in the slot."""
        ...

    def target(self, start: int, count: int) -> torch.Tensor:
        """View of the slot, ``[count, …]``: the units from ``start`` on."""
        ...

    def as_is(self, start: int, count: int) -> torch.Tensor | None:
        """The same bytes where a copy engine may read them in one piece, or None.

        That is: in host memory that is registered, if the slot is on a GPU.
        """
        ...

    def into(self, start: int, count: int, out: torch.Tensor) -> None:
        """Writes them into host memory of the shape and type of ``target(start, count)``.

        In the calling thread alone; may be called by several at once.
        """
        ...

    def landed(self, end: int) -> None:
        """Called when units up to ``end`` have been written; on a GPU, on the current stream."""
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

    def places(self, slots: Mapping[str, torch.Tensor]) -> tuple[Places, ...] | None:
        """Where plain copies of experts go from and to; None: slots are not filled by such alone.

        Args:
            slots: ``[S, …]`` by parameter name; a GPU reads what they are filled from by itself.
        """
        ...


@dataclass(frozen=True, slots=True)
class CopiedElements:
    """A tensor of the slot is the store's, element by element; both are contiguous."""

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

    def target(self, start: int, count: int) -> torch.Tensor:
        """Elements in a row."""
        return self.destination.view(-1)[start : start + count]

    def as_is(self, start: int, count: int) -> torch.Tensor:
        """Host memory in one piece is registered beside a GPU."""
        return self.source.view(-1)[start : start + count]

    def into(self, start: int, count: int, out: torch.Tensor) -> None:
        """Copies."""
        _copy(out, self.as_is(start, count))

    def landed(self, end: int) -> None:
        """Nothing follows."""


@dataclass(frozen=True, slots=True)
class CopiedRows:
    """Rows of a matrix of the slot are the store's, whose rows may lie apart, in mapped files."""

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

    def target(self, start: int, count: int) -> torch.Tensor:
        """Rows, each contiguous."""
        return self.destination[start : start + count]

    def as_is(self, start: int, count: int) -> None:
        """Mapped files cannot be registered."""

    def into(self, start: int, count: int, out: torch.Tensor) -> None:
        """Copies row by row; waits for pages that the page cache has lost."""
        _copy(out, self.source[start : start + count])

    def landed(self, end: int) -> None:
        """Nothing follows."""


@dataclass(frozen=True, slots=True)
class DequantisedRows:
    """A bf16 matrix ``[rows, columns]`` of the slot holds the values of the store's quantised one.

    All tensors are contiguous; weights and scales are as ``_native.quantise`` writes them.
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

    def target(self, start: int, count: int) -> torch.Tensor:
        """Rows."""
        return self.destination[start : start + count]

    def as_is(self, start: int, count: int) -> None:
        """The bytes of the slot are nowhere yet."""

    def into(self, start: int, count: int, out: torch.Tensor) -> None:
        """Dequantises."""
        _native.dequantise(
            self.weights[start].data_ptr(),
            self.scale[start].data_ptr(),
            self.format.value,
            count,
            self.destination.shape[1],
            out.data_ptr(),
        )

    def landed(self, end: int) -> None:
        """Nothing follows."""


def _copy(out: torch.Tensor, source: torch.Tensor) -> None:
    """Between host tensors of one shape, without the interpreter's lock.

    By numpy, which takes the calling thread alone: torch would start a team of threads beside each
    thread that copies, on cores that the pool has.
    """
    bits = _BITS[source.element_size()]
    np.copyto(out.view(bits).numpy(), source.view(bits).numpy())


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

    def places(self, slots: Mapping[str, torch.Tensor]) -> tuple[Places, ...] | None:
        """One for each tensor, where none is scattered.

        Raises:
            ValueError: A slot is no expert of the store.
        """
        found = []
        for name, tensor in self.tensors.items():
            if isinstance(tensor, ScatteredTensor):
                return None
            size, held = (bytes_of_one({name: t}) for t in (slots[name], tensor))
            if size != held:
                raise ValueError(f"{name} of an expert has {held} bytes, its slot {size}")
            found.append(
                Places(
                    to=slots[name].data_ptr(),
                    to_pitch=slots[name].stride(0) * slots[name].element_size(),
                    source=tensor.data_ptr(),
                    source_pitch=tensor.stride(0) * tensor.element_size(),
                    size=size,
                )
            )
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

    def places(self, slots: Mapping[str, torch.Tensor]) -> None:
        """The bytes of the slot are nowhere yet."""


def bytes_of_one(tensors: Mapping[str, ExpertTensor]) -> int:
    """Bytes of one expert, or one slot, of tensors that have these first."""
    return sum(math.prod(t.shape[1:]) * t.dtype.itemsize for t in tensors.values())
