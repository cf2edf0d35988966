"""Experts that no file has: what a :class:`~ktd.sgl.weight_file.WeightFile` is for those of a file.

Their bytes are generated where they are to go, by the threads that would have read them, so that
they take the same way through SGLang's loader: shards of ranks, scales, quantising at load.
"""

from __future__ import annotations

import bisect
import mmap
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import torch

from ktd.errors import ConfigError
from ktd.sgl.mapped_bytes import MappedBytes
from ktd.sgl.weight_file import Entry, WeightsUnreadable
from ktd.shapes.generated import Generated, read_generated
from ktd.shapes.values import ValueSource

_DTYPES = {"BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn, "I32": torch.int32}
_ALIGNMENT = 16


class GeneratedFile:
    """The experts of one model as if they lay in one file, one after the other."""

    def __init__(self, generated: Generated) -> None:
        self._source = ValueSource(generated.seed)
        self._numbered = list(generated.experts())
        entries, at = [], 0
        for _, tensor in self._numbered:
            dtype = _DTYPES[tensor.dtype]
            entries.append(Entry(tensor.name, dtype, tensor.shape, at, tensor.num_bytes))
            at += -(-tensor.num_bytes // _ALIGNMENT) * _ALIGNMENT
        self._size = at
        self.entries = tuple(entries)
        self._starts = [entry.start for entry in entries]

    def read(self, entry: Entry) -> torch.Tensor:
        """The tensor's bytes, in memory of its own."""
        tensor = torch.empty(entry.shape, dtype=entry.dtype)
        self.read_into(entry.start, entry.size, tensor.data_ptr(), entry.name)
        return tensor

    def read_into(self, start: int, size: int, address: int, _what: str) -> None:
        """Generates bytes of one tensor, from ``start`` of the whole on, at ``address``."""
        found = bisect.bisect_right(self._starts, start) - 1
        number, tensor = self._numbered[found]
        self._source.write(tensor, number, start - self._starts[found], size, address)

    def view(self, entry: Entry) -> torch.Tensor | None:
        """A tensor that stands for the bytes: it tells where SGLang's loader takes them from."""
        return self._mapped.view(entry.start, entry.dtype, entry.shape)

    @property
    def address(self) -> int:
        """Where the tensors of :meth:`view` lie; their storage is the whole."""
        return self._mapped.address

    @cached_property
    def _mapped(self) -> MappedBytes:
        # Address space and no memory: nobody reads through it.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        return MappedBytes(mmap.mmap(-1, self._size, flags=flags, prot=mmap.PROT_READ))


def generated_beside(folder: Path) -> Iterator[GeneratedFile]:
    """What the folder's description says, if it has one.

    Raises:
        WeightsUnreadable: It has one that cannot be followed.
    """
    try:
        generated = read_generated(folder)
    except ConfigError as error:
        raise WeightsUnreadable(str(error)) from error
    if generated is not None:
        yield GeneratedFile(generated)
