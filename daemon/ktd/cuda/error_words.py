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
# For as long as the process lives: what is mapped later at the place of registered memory would be
# taken for registered, and the GPU would write to the pages that were there.
_kept: list[mmap.mmap] = []


def path_of(runtime_dir: Path) -> Path:
    """Where the ranks of an engine find its words."""
    return runtime_dir / "channel-errors"


def provide(path: Path, ranks: int) -> None:
    """Makes the words for the ranks that this process is about to start, and keeps them.

    They are no file of the engine's folder: Linux lets no driver keep a page of a disk's file for
    its device to write (since 6.5), so ``path`` leads to memory without a name.

    Args:
        path: See :func:`path_of`.
        ranks: How many words.

    Raises:
        OSError: The link cannot be made.
    """
    memory = os.memfd_create("ktd-channel-errors")
    os.ftruncate(memory, ranks * _STRIDE)
    path.symlink_to(f"/proc/{os.getpid()}/fd/{memory}")


class ErrorWords:
    """The words, mapped by one rank and registered with its GPU.

    Args:
        path: As it was given to :func:`provide` in the process above.
        ranks: How many words.

    Raises:
        CudaFailed: The memory cannot be registered.
        OSError: There are no words.
    """

    def __init__(self, path: Path, ranks: int) -> None:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._map = mmap.mmap(file, ranks * _STRIDE)
        finally:
            os.close(file)
        self._words = torch.frombuffer(self._map, dtype=torch.int32)[:: _STRIDE // 4]
        self._memory = torch.frombuffer(self._map, dtype=torch.uint8)
        register(self._memory)
        _kept.append(self._map)

    def address(self, rank: int) -> int:
        """Where a rank's word is."""
        return self._memory.data_ptr() + rank * _STRIDE

    def first(self) -> tuple[int, int] | None:
        """Rank and value of the first word that is set, or None."""
        for rank, value in enumerate(self._words.tolist()):
            if value:
                return rank, value
        return None
