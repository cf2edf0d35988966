"""One error word for each rank of an engine, in memory that all of them see and their GPUs write.

A rank whose pool did not answer makes its share of a layer NaN, and the all-reduce carries that to
the others; by the time their step has finished, the word of the first is set.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import torch

from ktd.cuda.host_memory import register

_STRIDE = 64


class ErrorWords:
    """A file in the engine's folder, mapped by every rank.

    Args:
        path: The file; made by the first.
        ranks: How many words.

    Raises:
        CudaFailed: The memory cannot be registered.
        OSError: The file cannot be made.
    """

    def __init__(self, path: Path, ranks: int) -> None:
        size = ranks * _STRIDE
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(file, size)
            self._map = mmap.mmap(file, size)
        finally:
            os.close(file)
        self._words = torch.frombuffer(self._map, dtype=torch.int32)[:: _STRIDE // 4]
        self._memory = torch.frombuffer(self._map, dtype=torch.uint8)
        register(self._memory)

    def address(self, rank: int) -> int:
        """Where a rank's word is."""
        return self._memory.data_ptr() + rank * _STRIDE

    def first(self) -> tuple[int, int] | None:
        """Rank and value of the first word that is set, or None."""
        for rank, value in enumerate(self._words.tolist()):
            if value:
                return rank, value
        return None
