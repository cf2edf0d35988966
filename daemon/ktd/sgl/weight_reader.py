"""Reads a checkpoint at the disk's speed, in the place of SGLang's iterators over weight files.

SGLang's loader walks the tensors one by one in one thread. An expert's tensor is handed to it as a
view of the mapped file, which costs nothing; where SGLang's loader copies rows of such a view into
the host store, the copy is put off: threads read these rows from the file to where they belong. So
SGLang says which rows go where, and the bytes take one way from the disk. What is no expert's, or
is rearranged by SGLang's loader, is read ahead by the same threads instead.

With ``--host-memory mmap`` a copy may be noted instead, and the threads ask for the file's pages.
"""

from __future__ import annotations

import logging
import mmap
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from ktd.sgl.generated_file import generated_beside
from ktd.sgl.put_off_copies import PutOffCopies
from ktd.sgl.read_ahead import File, ReadAhead
from ktd.sgl.weight_file import Entry, WeightFile, WeightsUnreadable

_log = logging.getLogger(__name__)

_THREADS = 8
# Smaller tensors, such as scales, are read ahead like those of no expert.
_LEAST_VIEW = 64 << 10
_EXPERT = re.compile(r"\.experts?\.|\.block_sparse_moe\.(in|out)put_linear\.")

Copies = Callable[[torch.Tensor, torch.Tensor], bool]


@dataclass(frozen=True, slots=True)
class Loading:
    """What :meth:`WeightReader.load` has begun.

    Attributes:
        reads: What is still being read; a result raises WeightsUnreadable for a damaged file.
        rearranged: SGLang's loader did something with a file's tensor that ``keep`` did not take.
    """

    reads: list[Future[None]]
    rearranged: bool


class WeightReader:
    """Owns the reading threads and the files; one for each model that is loaded.

    Attributes:
        name: Of the tensor that was handed out last.

    Args:
        threads: How many read.
        mapped: Experts are to stay in the files, so every tensor of one that can be used from
            there is handed out as a view.
        watch: Called with each file that experts are to stay in, before anybody looks at them.
    """

    def __init__(
        self,
        threads: int = _THREADS,
        *,
        mapped: bool = False,
        watch: Callable[[WeightFile], None] = lambda _: None,
    ) -> None:
        self.name = ""
        self._mapped = mapped
        self._watch = watch
        self._told = False
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="ktd-load")
        self._files: dict[int, File] = {}  # by the address of their mappings
        self._views = True

    def tensors(self, paths: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and tensor of everything in these files, in the order in which it lies there.

        Experts that their folder only describes (ktd make-model) come after them.

        Raises:
            WeightsUnreadable: A file is damaged; the sentence names it.
        """
        for name, tensor in self._tensors(paths):
            self.name = name
            yield name, tensor

    def _tensors(self, paths: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        ahead = ReadAhead(self._threads)
        for file in _open(paths):
            for entry in file.entries:
                view = self._view(file, entry)
                if view is not None:
                    yield entry.name, view
                else:
                    ahead.add(file, entry)
                    yield from ahead.come()
        yield from ahead.rest()

    def load(
        self,
        load: Callable[[torch.Tensor], None],
        view: torch.Tensor,
        arrived: Callable[[], None],
        keep: Copies | None = None,
    ) -> Loading:
        """Calls SGLang's loader; what it copies from a view is read by the threads.

        Args:
            load: Copies rows of what it is given to where they belong.
            view: What that is: a view of a file, from :meth:`tensors`.
            arrived: Called when all of them are there, from one of the threads or from this one.
            keep: Asked with destination and source of each copy whether the source will be used
                where it lies; then the threads make its pages appear instead.
        """
        copies = PutOffCopies(self)
        copies.watch(load, view)
        if copies.materialised and not self._mapped:
            # This format's loader rearranges: reading ahead is faster than views.
            self._views = False
        kept = [keep is not None and keep(*job) for job in copies.jobs]
        rearranged = copies.materialised or not all(kept)
        if not copies.jobs:
            arrived()
            return Loading([], rearranged)
        left = len(copies.jobs)
        lock = threading.Lock()

        def read(destination: torch.Tensor, source: torch.Tensor, *, stays: bool) -> None:
            nonlocal left
            if stays:
                self.populate(source)
            else:
                self.fill(destination, source)
            with lock:
                left -= 1
                last = left == 0
            if last:
                arrived()

        reads = [
            self._threads.submit(read, *job, stays=stays)
            for job, stays in zip(copies.jobs, kept, strict=True)
        ]
        return Loading(reads, rearranged)

    def file_of(self, tensor: torch.Tensor) -> File | None:
        """The file that a tensor is a view of, or None."""
        if tensor.device.type != "cpu" or not self._files:
            return None
        return self._files.get(tensor.untyped_storage().data_ptr())

    def fill(self, destination: torch.Tensor, source: torch.Tensor) -> None:
        """Reads the bytes of a view of a file into a tensor of the same shape and type."""
        file = self._files[source.untyped_storage().data_ptr()]
        start = source.data_ptr() - file.address
        if source.is_contiguous() and destination.is_contiguous():
            size = source.numel() * source.element_size()
            file.read_into(start, size, destination.data_ptr(), "a tensor of an expert")
        else:
            destination.copy_(self.read(source))

    def populate(self, source: torch.Tensor) -> None:
        """Makes the pages of a view of a file appear in this process."""
        file = self._files[source.untyped_storage().data_ptr()]
        size = _elements(source) * source.element_size()
        if isinstance(file, WeightFile):  # generated experts have no pages, and were refused
            file.populate(source.data_ptr() - file.address, size, "a tensor of an expert")

    def read(self, source: torch.Tensor) -> torch.Tensor:
        """A view of a file with the same strides in memory of its own."""
        file = self._files[source.untyped_storage().data_ptr()]
        count = _elements(source)
        memory = torch.empty(count, dtype=source.dtype)
        file.read_into(
            source.data_ptr() - file.address,
            count * source.element_size(),
            memory.data_ptr(),
            "a tensor of an expert",
        )
        return memory.as_strided(source.shape, source.stride())

    def close(self) -> None:
        """Ends the threads and forgets the files."""
        self._threads.shutdown(cancel_futures=True)
        self._files.clear()

    def _view(self, file: File, entry: Entry) -> torch.Tensor | None:
        least = mmap.PAGESIZE if self._mapped else _LEAST_VIEW
        if not self._views or entry.size < least or not _EXPERT.search(entry.name):
            return None
        if self._mapped and not isinstance(file, WeightFile):
            raise WeightsUnreadable(
                f"--host-memory mmap uses experts from the checkpoint's files, and none has "
                f"{entry.name}, which is generated (ktd make-model); leave --host-memory out"
            )
        view = file.view(entry)
        if view is not None:
            if self._mapped and isinstance(file, WeightFile) and file.address not in self._files:
                self._watch(file)
            self._files[file.address] = file
        elif self._mapped and isinstance(file, WeightFile):
            self._tell(file, entry)
        return view

    def _tell(self, file: WeightFile, entry: Entry) -> None:
        """Once: a file's tensor cannot be used from where it lies."""
        if not self._told:
            self._told = True
            _log.warning(
                "tensors are copied into memory, in spite of --host-memory mmap, where they do not "
                "begin at a multiple of their elements' size: %s begins at byte %d of %s",
                entry.name,
                entry.start,
                file.path,
            )


def _open(paths: Iterable[str]) -> Iterator[File]:
    """The files, and last what a folder has only a description of."""
    folders: dict[Path, None] = {}
    for path in map(Path, paths):
        folders.setdefault(path.parent)
        yield WeightFile(path)
    for folder in folders:
        yield from generated_beside(folder)


def _elements(view: torch.Tensor) -> int:
    """From the first to the last one that a view looks at."""
    steps = zip(view.shape, view.stride(), strict=True)
    return 1 + sum((size - 1) * stride for size, stride in steps)
