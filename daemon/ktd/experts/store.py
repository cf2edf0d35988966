"""Host memory for experts: each expert exists once, here.

What it is not: a loader (it does not know checkpoints) and no cache. It maps memory, lets the
kernel back it with huge pages, and knows how much of it is alive.
"""

from __future__ import annotations

import errno
import logging
import math
import mmap
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path

import torch

from ktd.errors import DoesNotFit

_log = logging.getLogger(__name__)

_HUGE_PAGE = 2 << 20
_GIB = 1 << 30
_HUGE_PAGE_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


class HostStore:
    """Hands out tensors over private anonymous mappings.

    Pages appear when they are first written, on the NUMA node of the writing thread; until then an
    allocation costs address space only. A mapping lives as long as a tensor that looks into it.

    Args:
        mapped: Experts are used from the checkpoint's files, where the page cache has them; what
            is allocated here holds what cannot stay there, and slots.
        huge_page_setting: The kernel's file that says whether it hands out huge pages; see its
            admin-guide/mm/transhuge. A missing file decides nothing.
    """

    def __init__(
        self, huge_page_setting: Path = _HUGE_PAGE_SETTING, *, mapped: bool = False
    ) -> None:
        self.mapped = mapped
        self._lock = threading.Lock()
        self._bytes = 0
        self._huge_pages = True
        try:
            setting = huge_page_setting.read_text(encoding="ascii")
        except OSError:
            return
        if "[never]" in setting:
            self._lose_huge_pages(f"{huge_page_setting} says never")

    @property
    def allocated_bytes(self) -> int:
        """Bytes of all allocations that are still alive, touched or not."""
        return self._bytes

    @property
    def huge_pages(self) -> bool:
        """False once the kernel has refused to use huge pages; kernels then read slower."""
        return self._huge_pages

    def allocate(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Map zeroed memory for one tensor.

        Args:
            shape: Sizes, each at least 1.
            dtype: Any torch dtype.

        Returns:
            A contiguous CPU tensor that starts at a huge page if it is as large as one.

        Raises:
            ValueError: The shape is empty or has a size below 1.
            DoesNotFit: The host cannot map that much; the message has the sum.
        """
        if not shape or min(shape) < 1:
            raise ValueError(f"an expert tensor needs sizes of at least 1, not {tuple(shape)}")
        size = math.prod(shape) * dtype.itemsize
        # Only whole aligned huge pages can be huge; the pages skipped are never touched.
        slack = _HUGE_PAGE if size >= _HUGE_PAGE else 0
        mapping = self._map(size, slack)
        raw = torch.frombuffer(mapping, dtype=torch.uint8)  # keeps the mapping alive
        start = -raw.data_ptr() % _HUGE_PAGE if slack else 0
        with self._lock:
            self._bytes += size
        weakref.finalize(mapping, self._forget, size)
        return raw[start : start + size].view(dtype).view(*shape)

    def _map(self, size: int, slack: int) -> mmap.mmap:
        try:
            mapping = mmap.mmap(-1, size + slack, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, OverflowError, ValueError) as error:
            if isinstance(error, OSError) and error.errno != errno.ENOMEM:
                raise
            held = self._bytes
            raise DoesNotFit(
                f"the host has no memory for {size / _GIB:.2f} GiB of experts beside the "
                f"{held / _GIB:.2f} GiB held already, {(size + held) / _GIB:.2f} GiB in all: "
                "free memory, or serve a smaller model",
                required_bytes=str(size + held),
                held_bytes=str(held),
            ) from error
        self._advise(mapping)
        return mapping

    def _advise(self, mapping: mmap.mmap) -> None:
        mapping.madvise(mmap.MADV_DONTDUMP)  # a core dump would be as large as the model
        try:
            mapping.madvise(mmap.MADV_HUGEPAGE)
        except OSError as error:
            self._lose_huge_pages(str(error))

    def _lose_huge_pages(self, why: str) -> None:
        if self._huge_pages:
            _log.warning("experts are kept in small pages, which are slower to read: %s", why)
        self._huge_pages = False

    def _forget(self, size: int) -> None:
        with self._lock:
            self._bytes -= size
