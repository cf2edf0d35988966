"""Reads tensors from the files of ``torch.save``, without torch, executing nothing.

The format since PyTorch 1.6: a zip archive, stored without compression, with ``NAME/data.pkl``, a
pickle in which each tensor's storage is a persistent id, and ``NAME/data/KEY``, the storages' bytes
(``torch/serialization.py``).
"""

from __future__ import annotations

import sys
import zipfile
from array import array
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from ktd.errors import ConfigError
from ktd.stats.plain_pickle import NameRefused, PickleRefused, PlainPickle

if TYPE_CHECKING:
    from pathlib import Path

# Statistics need a few hundred bytes of pickle; the numbers are outside it.
_LARGEST_PICKLE = 16 << 20
# Storage class -> ``array`` type code.
_TYPES = {
    "BoolStorage": "B",
    "ByteStorage": "B",
    "CharStorage": "b",
    "ShortStorage": "h",
    "IntStorage": "i",
    "LongStorage": "q",
    "FloatStorage": "f",
    "DoubleStorage": "d",
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A view of a storage, as torch has it: element ``[i, j]`` is at ``offset + i*s0 + j*s1``."""

    storage: array[Any]
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def contiguous(self) -> bool:
        """Whether the elements lie in row-major order without gaps."""
        return self.stride == tuple(prod(self.shape[axis + 1 :]) for axis in range(len(self.shape)))

    def values(self) -> array[Any]:
        """All elements in row-major order."""
        if self.contiguous:
            return self.storage[self.offset : self.offset + prod(self.shape)]
        indices = [self.offset]
        for size, stride in zip(self.shape, self.stride, strict=True):
            indices = [index + step * stride for index in indices for step in range(size)]
        return array(self.storage.typecode, map(self.storage.__getitem__, indices))


def read_torch_file(path: Path, *, largest_pickle: int = _LARGEST_PICKLE) -> object:
    """What ``torch.save`` wrote: tensors, dicts, lists, numbers and strings.

    Args:
        path: The file.
        largest_pickle: Bytes of pickle that are read at most; tensors' numbers are outside it.

    Raises:
        ConfigError: the file is not such a file, or holds anything else (named).
        OSError: the file cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _Archive(archive).load(largest_pickle)
    except NameRefused as error:
        raise ConfigError(
            f"{path} contains {error.name}, which activation statistics do not need; it was not "
            "loaded and nothing in it was executed."
        ) from None
    except (zipfile.BadZipFile, PickleRefused, NotImplementedError, EOFError) as error:
        raise ConfigError(
            f"{path} is not a file that torch.save wrote (of PyTorch 1.6 or newer): {error}."
        ) from None


class _Archive:
    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise PickleRefused("it has no data.pkl")
        self._prefix = pickles[0].removesuffix("data.pkl")
        self._storages: dict[str, array[Any]] = {}
        self._swapped = self._byte_order() != sys.byteorder

    def load(self, largest_pickle: int) -> object:
        names: dict[str, object] = {f"torch.{name}": code for name, code in _TYPES.items()}
        names["torch._utils._rebuild_tensor_v2"] = _tensor
        names["collections.OrderedDict"] = _dict
        data = self._read("data.pkl", largest_pickle)
        return PlainPickle(names, self._storage).load(data)

    def _byte_order(self) -> str:
        if f"{self._prefix}byteorder" not in self._archive.namelist():
            return "little"  # files of PyTorch before 2.1
        return self._read("byteorder", 16).decode("ascii", "replace")

    def _storage(self, persistent_id: object) -> array[Any]:
        if not isinstance(persistent_id, tuple) or len(persistent_id) != 5:  # noqa: PLR2004  # as torch writes it
            raise PickleRefused("a storage has an unknown form")
        kind, code, key, _, length = persistent_id
        if kind != "storage" or code not in _TYPES.values() or not isinstance(key, str):
            raise PickleRefused("a storage has an unknown form")
        if key not in self._storages:
            values = array(code)
            values.frombytes(self._read(f"data/{key}", None))
            if self._swapped:
                values.byteswap()
            self._storages[key] = values
        values = self._storages[key]
        if values.typecode != code or len(values) != length:
            raise PickleRefused(f"storage {key} has {len(values)} elements instead of {length}")
        return values

    def _read(self, name: str, largest: int | None) -> bytes:
        try:
            entry = self._archive.getinfo(self._prefix + name)
        except KeyError:
            raise PickleRefused(f"it has no {name}") from None
        # torch never compresses: what unpacks to more than the file's size is no torch file.
        if entry.compress_type != zipfile.ZIP_STORED:
            raise PickleRefused(f"{name} is compressed")
        if largest is not None and entry.file_size > largest:
            raise PickleRefused(f"{name} has {entry.file_size} bytes")
        return self._archive.read(entry)


def _dict(pairs: Any = ()) -> dict[Any, Any]:
    return dict(pairs)


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_rest: Any) -> Tensor:
    if not isinstance(storage, array) or not isinstance(offset, int) or offset < 0:
        raise PickleRefused("a tensor has an unknown form")
    for numbers in (shape, stride):
        if not isinstance(numbers, tuple) or not all(
            isinstance(number, int) and number >= 0 for number in numbers
        ):
            raise PickleRefused("a tensor has an unknown form")
    if len(shape) != len(stride):
        raise PickleRefused("a tensor has an unknown form")
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    # Also refuses views that repeat elements, which could be of any size.
    if prod(shape) > len(storage) or (prod(shape) and last >= len(storage)):
        raise PickleRefused("a tensor is larger than its storage")
    return Tensor(storage, offset, shape, stride)
