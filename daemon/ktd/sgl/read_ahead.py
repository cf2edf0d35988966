"""Tensors that threads read before SGLang's loader asks for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeAlias

import torch

from ktd.sgl.generated_file import GeneratedFile
from ktd.sgl.weight_file import Entry, WeightFile

File: TypeAlias = WeightFile | GeneratedFile

# Bytes that may be read before they are asked for.
_AHEAD = 512 << 20
# Handing a tensor to a thread costs as much as reading this much: smaller ones, such as scales, go
# together, as far as they follow each other.
_SMALL = 64 << 10
_TOGETHER = 1 << 20
_MOST_TOGETHER = 256


class ReadAhead:
    """A queue: what was added comes in the same order.

    Args:
        threads: Who reads.
    """

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        self._threads = threads
        self._reads: deque[tuple[list[Entry], Future[list[torch.Tensor]]]] = deque()
        self._waiting = 0
        self._small: list[Entry] = []
        self._small_bytes = 0
        self._file: File

    def add(self, file: File, entry: Entry) -> None:
        """Has a tensor read."""
        if self._small and file is not self._file:
            self._start()
        self._file = file
        self._small.append(entry)
        self._small_bytes += entry.size
        if (
            entry.size >= _SMALL
            or self._small_bytes >= _TOGETHER
            or len(self._small) >= _MOST_TOGETHER
        ):
            self._start()

    def come(self) -> Iterator[tuple[str, torch.Tensor]]:
        """What is there already, and what there is too much of.

        Raises:
            WeightsUnreadable: A file is damaged; the sentence names it.
        """
        while self._reads and (self._waiting > _AHEAD or self._reads[0][1].done()):
            yield from self._next()

    def rest(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Everything.

        Raises:
            WeightsUnreadable: A file is damaged; the sentence names it.
        """
        self._start()
        while self._reads:
            yield from self._next()

    def _start(self) -> None:
        if self._small:
            read = self._threads.submit(_read, self._file, self._small)
            self._reads.append((self._small, read))
            self._waiting += self._small_bytes
            self._small, self._small_bytes = [], 0

    def _next(self) -> Iterator[tuple[str, torch.Tensor]]:
        entries, read = self._reads.popleft()
        self._waiting -= sum(entry.size for entry in entries)
        for entry, tensor in zip(entries, read.result(), strict=True):
            yield entry.name, tensor


def _read(file: File, entries: list[Entry]) -> list[torch.Tensor]:
    return [file.read(entry) for entry in entries]
