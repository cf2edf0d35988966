"""Puts the experts of several engines on the very same memory, for two_gpus.py --same-memory.

Python imports this at every start of an interpreter that has this folder in its PYTHONPATH. Where
KTD_SAME_MEMORY names a file (on a tmpfs, and as large as all experts), host stores map it in place
of memory of their own: each allocation the next piece, of which a tensor-parallel rank has its
part. What one engine writes there another reads as its weights: for generated experts, whose
answers have no meaning.
"""

import importlib
import importlib.abc
import importlib.machinery
import mmap
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

_MODULE = "ktd.experts.store"
_FILE = os.environ.get("KTD_SAME_MEMORY")
_HUGE_PAGE = 2 << 20


def _put_on(path: str, store: ModuleType) -> None:
    file = os.open(path, os.O_RDWR)
    taken = 0

    def shared(self: Any, size: int, slack: int) -> mmap.mmap:
        nonlocal taken
        import torch.distributed as ranks  # noqa: PLC0415 # the store has imported torch

        count = ranks.get_world_size() if ranks.is_initialized() else 1
        rank = ranks.get_rank() if ranks.is_initialized() else 0
        begin = taken + rank * size
        begin -= begin % mmap.ALLOCATIONGRANULARITY
        # What is skipped at the beginning of a piece is taken at its end.
        taken += -(-(size * count + slack) // _HUGE_PAGE) * _HUGE_PAGE
        if os.fstat(file).st_size < taken:
            raise MemoryError(f"{path} is too small for the experts: give a larger --experts-gib")
        mapping = mmap.mmap(file, size + slack, flags=mmap.MAP_SHARED, offset=begin)
        self._advise(mapping)
        return mapping

    store.HostStore._map = shared  # type: ignore[attr-defined] # noqa: SLF001 # its only seam


class _AfterImport(importlib.abc.MetaPathFinder):
    """Replaces the method as soon as there is one."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _MODULE or _FILE is None:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            raise ImportError(f"{fullname} is not found as a file of PYTHONPATH")
        loader, execute, file = spec.loader, spec.loader.exec_module, _FILE

        def execute_and_replace(module: ModuleType) -> None:
            execute(module)
            _put_on(file, module)

        loader.exec_module = execute_and_replace  # type: ignore[method-assign]
        return spec


if _FILE is not None:
    sys.meta_path.insert(0, _AfterImport())
