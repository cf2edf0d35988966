"""A mapping that tensors are views of."""

from __future__ import annotations

import mmap
import operator
import warnings
from itertools import accumulate

import torch


class MappedBytes:
    """One mapping as tensors of any type; their storage is the whole of it."""

    def __init__(self, mapping: mmap.mmap) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch: nobody must write to it
            self._bytes = torch.frombuffer(mapping, dtype=torch.uint8)
        self.address = self._bytes.data_ptr()
        self.num_bytes = self._bytes.numel()
        self._typed: dict[torch.dtype, torch.Tensor] = {}

    def view(self, start: int, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        """The contiguous tensor that begins at byte ``start``, a multiple of its elements' size.

        Raises:
            RuntimeError: The mapping ends before.
        """
        whole = self._typed.get(dtype)
        if whole is None:
            length = self.num_bytes // dtype.itemsize * dtype.itemsize
            whole = self._typed[dtype] = self._bytes[:length].view(dtype)
        # One operator, because each lets other threads have the interpreter.
        strides = tuple(accumulate(shape[:0:-1], operator.mul, initial=1))[: len(shape)]
        return whole.as_strided(shape, strides[::-1], start // dtype.itemsize)
