"""One safetensors file: where its tensors lie, their bytes, and a view of it that costs nothing.

While a model is loaded bytes are read with read calls, or asked for from the kernel, never touched
through the mapping: a file that became shorter since its header was read is then an error with its
name, where a mapping kills the process (SIGBUS).
"""

from __future__ import annotations

import ctypes
import errno
import json
import math
import mmap
import os
import weakref
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ktd.sgl.mapped_bytes import MappedBytes

_LENGTH_BYTES = 8
_MAX_HEADER = 100 << 20
# Linux reads at most this much at a time.
_MAX_READ = 1 << 30
_SCRATCH = 1 << 20
_MADV_POPULATE_READ = 22  # Linux 5.14; Python has no name for it

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class WeightsUnreadable(Exception):  # reads as what happened, and is the sentence a user sees
    """A weight file is damaged, or its disk is; the sentence names the file."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file: ``size`` bytes from ``start`` on, counted from the file's beginning."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    size: int


class WeightFile:
    """A weight file that is open for reading, from any number of threads.

    Raises:
        WeightsUnreadable: It cannot be opened, or is no safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise WeightsUnreadable(f"{path} cannot be read: {error.strerror}") from error
        weakref.finalize(self, os.close, self._descriptor)
        self.entries = self._read_header()

    def _read_header(self) -> tuple[Entry, ...]:
        length = int.from_bytes(self._read_bytes(0, _LENGTH_BYTES, "its header"), "little")
        if length > _MAX_HEADER:
            raise WeightsUnreadable(
                f"{self.path} is not a safetensors file: {length:,} bytes are longer than a header "
                "may be; download it again"
            )
        try:
            raw = json.loads(self._read_bytes(_LENGTH_BYTES, length, "its header"))
            raw.pop("__metadata__", None)
            entries = [_entry(name, value, _LENGTH_BYTES + length) for name, value in raw.items()]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise WeightsUnreadable(
                f"{self.path} is not a safetensors file: {error}; download it again"
            ) from error
        return tuple(sorted(entries, key=lambda entry: entry.start))

    def read(self, entry: Entry) -> torch.Tensor:
        """The tensor's bytes, in memory of its own."""
        tensor = torch.empty(entry.shape, dtype=entry.dtype)
        if entry.size:
            self.read_into(entry.start, entry.size, tensor.data_ptr(), entry.name)
        return tensor

    def read_into(self, start: int, size: int, address: int, what: str) -> None:
        """Reads ``size`` bytes from ``start`` on to ``address``; ``what`` is for the error.

        Raises:
            WeightsUnreadable: The file ends before, or the disk does not give them.
        """
        view = memoryview((ctypes.c_char * size).from_address(address)).cast("B")
        done = 0
        while done < size:
            try:
                count = os.preadv(self._descriptor, [view[done : done + _MAX_READ]], start + done)
            except OSError as error:
                raise WeightsUnreadable(
                    f"{self.path} cannot be read at byte {start + done:,}: {error.strerror}"
                ) from error
            if count == 0:
                length = os.fstat(self._descriptor).st_size
                raise self._truncated(length, what, start + size)
            done += count

    def populate(self, start: int, size: int, what: str) -> None:
        """Makes the mapping of ``size`` bytes from ``start`` on appear, from the disk if need be.

        Raises:
            WeightsUnreadable: The file ends before, or the disk does not give them. A page that is
                lost later is a signal that ends the process.
        """
        begin = start // mmap.PAGESIZE * mmap.PAGESIZE
        address, length = self.address + begin, start + size - begin
        # Asked for at once, they come faster than page by page.
        _madvise(address, length, mmap.MADV_WILLNEED)
        error = _madvise(address, length, _MADV_POPULATE_READ)
        if error == 0:
            return
        # What the kernel cannot do (before Linux 5.14), and why it failed, shows when it is read.
        scratch = bytearray(min(size, _SCRATCH))
        to = ctypes.addressof(ctypes.c_char.from_buffer(scratch))
        for at in range(start, start + size, _SCRATCH):
            self.read_into(at, min(_SCRATCH, start + size - at), to, what)
        if error != errno.EINVAL:
            raise WeightsUnreadable(f"{self.path} cannot be mapped: {os.strerror(error)}")

    def view(self, entry: Entry) -> torch.Tensor | None:
        """The tensor as a read-only view of the mapped file, or None where it is not aligned.

        Raises:
            WeightsUnreadable: The file ended before the tensor does when it was mapped.
        """
        if entry.start % entry.dtype.itemsize or not entry.size:
            return None
        if entry.start + entry.size > self._mapped.num_bytes:
            raise self._truncated(self._mapped.num_bytes, entry.name, entry.start + entry.size)
        return self._mapped.view(entry.start, entry.dtype, entry.shape)

    @property
    def address(self) -> int:
        """Where the mapping of :meth:`view` begins; its tensors' storage is the whole file."""
        return self._mapped.address

    @property
    def mapped_bytes(self) -> int:
        """Length of that mapping."""
        return self._mapped.num_bytes

    @cached_property
    def _mapped(self) -> MappedBytes:
        return MappedBytes(mmap.mmap(self._descriptor, 0, prot=mmap.PROT_READ))

    def _truncated(self, length: int, what: str, end: int) -> WeightsUnreadable:
        return WeightsUnreadable(
            f"{self.path} is truncated: it has {length:,} bytes, and {what} ends at byte {end:,}; "
            "download it again"
        )

    def _read_bytes(self, start: int, size: int, what: str) -> bytes:
        data = bytearray(size)
        if size:
            address = ctypes.addressof(ctypes.c_char.from_buffer(data))
            self.read_into(start, size, address, what)
        return bytes(data)


_libc = ctypes.CDLL(None, use_errno=True)  # lets other threads run, as mmap.madvise does not
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def _madvise(address: int, size: int, advice: int) -> int:
    """0, or the number of the error."""
    return ctypes.get_errno() if _libc.madvise(address, size, advice) else 0


def _entry(name: str, raw: dict[str, Any], data: int) -> Entry:
    begin, end = raw["data_offsets"]
    shape = tuple(raw["shape"])
    dtype = _DTYPES.get(str(raw["dtype"]))
    if dtype is None:
        raise ValueError(f"tensor {name} has type {raw['dtype']}, which ktd does not know")
    if end - begin != math.prod(shape) * dtype.itemsize or begin < 0:
        raise ValueError(f"the size of tensor {name} contradicts its shape")
    return Entry(name, dtype, shape, data + begin, end - begin)
