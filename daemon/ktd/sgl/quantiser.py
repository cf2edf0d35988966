"""Quantises shards of experts while they are loaded, so that the quantised copy is the only one.

SGLang's loader writes a shard, narrowed to this rank's part of it, into scratch memory that stands
for all experts of the layer at once; what it wrote is quantised into the store as soon as it is
there. How much scratch memory there is at a time is limited, over all layers: who would exceed it
waits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ktd.experts import _native
from ktd.experts.store import HostStore
from ktd.experts.weights import FP8_BLOCK, WeightFormat
from ktd.sgl.expert_format import FormatRefused
from ktd.sgl.host_parameter import like

# Enough for every thread that reads, and the next ones in line.
_SHARDS_IN_FLIGHT = 12
_GROUP = 32
_NIBBLES = 8

# What ``--cpu-expert-format`` calls them.
_FORMATS = {"int8": WeightFormat.INT8_WEIGHT, "int4": WeightFormat.INT4}


@dataclass(frozen=True, slots=True)
class Source:
    """What the checkpoint has.

    Attributes:
        format: ``BF16``, ``FP8_BLOCK`` or ``FP8_CHANNEL``.
        scales: Of FP8, ``[E, …]``; those of a shard must be there when it arrives.
    """

    format: WeightFormat
    scales: torch.Tensor | None = None

    def scale_address(self, expert: int | None, row: int) -> int:
        """Of the scales of a shard that begins at ``row``; 0 without scales."""
        if self.scales is None:
            return 0
        blocks = self.format is WeightFormat.FP8_BLOCK
        return self.scales[expert, -(-row // FP8_BLOCK) if blocks else row].data_ptr()


class Quantiser:
    """Makes the places of one rank where shards become quantised.

    Args:
        wanted: ``"int8"`` or ``"int4"``.
        store: Where host memory comes from.
        place: Makes the memory of a tensor appear where it will be read; told how many matrices an
            expert has in it.
    """

    def __init__(
        self, wanted: str, store: HostStore, place: Callable[[torch.Tensor, int], None]
    ) -> None:
        self.format = _FORMATS[wanted]
        self._store = store
        self._place = place
        self._room = threading.BoundedSemaphore(_SHARDS_IN_FLIGHT)

    def parameter(
        self, meta: nn.Parameter, shards: Sequence[str], source: Source | None = None
    ) -> QuantisedParameter:
        """A place for all experts of one of SGLang's parameters.

        Args:
            meta: ``[E, rows, columns]`` of the meta device; its attributes are kept.
            shards: What an expert's rows consist of, in equal parts, in this order.
            source: What comes; None: bf16.

        Raises:
            FormatRefused: The format cannot take these sizes.
        """
        experts, rows, columns = meta.shape
        if self.format is WeightFormat.INT4 and columns % _GROUP:
            raise FormatRefused(
                f"int4 needs a multiple of {_GROUP} inputs, but a rank's part of an expert has "
                f"{columns}; use --cpu-expert-format int8"
            )
        if self.format is WeightFormat.INT4:
            weights = self._store.allocate((experts, rows, columns // _NIBBLES), torch.int32)
            scale = self._store.allocate((experts, rows, columns // _GROUP), torch.bfloat16)
        else:
            weights = self._store.allocate((experts, rows, columns), torch.int8)
            scale = self._store.allocate((experts, rows), torch.float32)
        for tensor in (weights, scale):
            self._place(tensor, len(shards))
        return QuantisedParameter(
            meta,
            shards,
            source=source or Source(WeightFormat.BF16),
            weight_format=self.format,
            weights=weights,
            scale=scale,
            room=self._room,
        )


class QuantisedParameter:
    """One parameter of a layer; see :class:`Quantiser`.

    Attributes:
        weights: Quantised, ``[E, rows, …]``.
        scale: Of these.
    """

    def __init__(
        self,
        meta: nn.Parameter,
        shards: Sequence[str],
        *,
        source: Source,
        weight_format: WeightFormat,
        weights: torch.Tensor,
        scale: torch.Tensor,
        room: threading.BoundedSemaphore,
    ) -> None:
        self._meta = meta
        self._rows = meta.shape[1] // len(shards)
        # A layer's experts come in one tensor (None) if they have biases; none of those is here.
        self._first_row: dict[str | None, int] = {
            shard: index * self._rows for index, shard in enumerate(shards)
        }
        self._source = source
        self._format = weight_format
        self.weights = weights
        self.scale = scale
        self._room = room

    def begin(self, shard: str | None) -> nn.Parameter:
        """Scratch memory for one shard of any expert; waits while there is too much of it.

        Every call wants one of :meth:`end`.
        """
        self._room.acquire()
        memory = torch.empty(self._meta.shape[1:], dtype=self._meta.dtype)
        memory.narrow(0, self._first_row[shard], self._rows).zero_()
        return like(self._meta, memory.expand(self._meta.shape))

    def arrived(self, parameter: nn.Parameter, expert: int | None, shard: str | None) -> None:
        """The shard of this expert is in scratch memory: it is quantised, in the calling thread."""
        first = self._first_row[shard]
        _native.quantise(
            parameter.data[expert, first].data_ptr(),
            self._source.format.value,
            self._source.scale_address(expert, first),
            self._rows,
            self._meta.shape[2],
            self._format.value,
            self.weights[expert, first].data_ptr(),
            self.scale[expert, first].data_ptr(),
        )

    def end(self) -> None:
        """Nobody writes into the scratch memory of one :meth:`begin` any more."""
        self._room.release()

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """Weights under the parameter's name, and their scales."""
        return {name: self.weights, f"{name}_scale": self.scale}
