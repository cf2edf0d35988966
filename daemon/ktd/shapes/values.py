"""The bytes of generated tensors: the same for the same seed, on every host and in any order.

One block of random values is drawn for each type. A tensor is that block, repeated, from a place of
its own on: so bytes come as fast as memory is copied. The block's length is a prime, which keeps
rows of a tensor, and experts of a model, from being equal to each other. They are shifts of each
other, so nothing about a model's quality, compression or sparsity can be measured with them.
"""

from __future__ import annotations

import ctypes
import random
import threading
from collections.abc import Iterator
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ktd.shapes.tensors import Tensor, Values

# A prime: 4 MiB in bf16, small enough for the caches that copying threads share.
LENGTH = 2_097_169
DEVIATION = 0.02
# Largest value of E4M3, and the deviation of weights in its units: 448 is 4.7 times that.
_E4M3_MAX = 448.0
_E4M3_DEVIATION = 96.0
# The same of any sixteen integers, as often as each other.
_INT4_DEVIATION = (255 / 12) ** 0.5
_LEVELS = 1 << 16
# Far from any simple fraction of LENGTH, so that neighbours begin far from each other.
_STRIDE = 1_296_121


class ValueSource:
    """Gives any part of any tensor; may be asked from several threads.

    Args:
        seed: Of everything.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._lock = threading.Lock()
        self._blocks: dict[tuple[str, Values], NDArray[np.uint8]] = {}

    def parts(self, tensor: Tensor, number: int, start: int, size: int) -> Iterator[memoryview]:
        """Bytes ``start`` to ``start + size`` of a tensor, in pieces of the block.

        Args:
            tensor: The tensor.
            number: Which of the model's tensors it is; no two may have the same.
            start: First byte.
            size: Number of bytes.
        """
        block = self._block(tensor)
        length = block.nbytes
        position = (number * _STRIDE % LENGTH * tensor.itemsize + start) % length
        view = block.data
        while size:
            piece = min(size, length - position)
            yield view[position : position + piece]
            size -= piece
            position = 0

    def write(self, tensor: Tensor, number: int, start: int, size: int, address: int) -> None:
        """Copies the same bytes to ``address``, without the interpreter's lock."""
        for part in self.parts(tensor, number, start, size):
            source = np.frombuffer(part, dtype=np.uint8)
            ctypes.memmove(address, source.ctypes.data, part.nbytes)
            address += part.nbytes

    def _block(self, tensor: Tensor) -> NDArray[np.uint8]:
        key = tensor.dtype, tensor.values
        with self._lock:
            if key not in self._blocks:
                self._blocks[key] = self._draw(*key)
            return self._blocks[key]

    def _draw(self, dtype: str, values: Values) -> NDArray[np.uint8]:
        if values in (Values.ONES, Values.ZEROS):
            return _bytes(_bf16(np.full(LENGTH, float(values is Values.ONES))))
        # The standard library promises these bytes for a seed; numpy does not for its normals.
        raw = random.Random(f"{self._seed} {dtype} {values}").randbytes(2 * LENGTH)  # noqa: S311
        levels = np.frombuffer(raw, dtype="<u2")
        if dtype == "I32":
            return _bytes(np.concatenate([levels, levels[::-1]]))
        if values in (Values.SCALES, Values.GROUP_SCALES):
            weights = _E4M3_DEVIATION if values is Values.SCALES else _INT4_DEVIATION
            spread = np.linspace(0.75, 1.25, _LEVELS)
            return _bytes(_bf16(spread * (DEVIATION / weights))[levels])
        normal = NormalDist()
        quantiles = np.array([normal.inv_cdf((level + 0.5) / _LEVELS) for level in range(_LEVELS)])
        if dtype == "F8_E4M3":
            return _bytes(_e4m3(quantiles * _E4M3_DEVIATION)[levels])
        return _bytes(_bf16(quantiles * DEVIATION)[levels])


def _bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    return np.frombuffer(values.tobytes(), dtype=np.uint8)


def _bf16(values: NDArray[np.float64]) -> NDArray[Any]:
    """Bits of the nearest bf16."""
    bits = values.astype("<f4").view("<u4")
    return ((bits + 0x8000) >> 16).astype("<u2")


def _e4m3(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Bits of the nearest E4M3; there is no infinity, and the largest value has bits 0x7e."""
    bits = np.arange(0x7F)
    exponent, mantissa = bits >> 3, bits & 7
    magnitudes = np.where(
        exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0)
    )
    middles = (magnitudes[1:] + magnitudes[:-1]) / 2
    found = np.searchsorted(middles, np.minimum(np.abs(values), _E4M3_MAX))
    return np.where(values < 0, found + 0x80, found).astype(np.uint8)
