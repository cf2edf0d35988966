"""Writes a generated model as a checkpoint folder, as fast as the disk takes it."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ktd.errors import ConfigError, DoesNotFit
from ktd.shapes.generated import INDEX, Generated, index_metadata
from ktd.shapes.tensors import Tensor
from ktd.shapes.tokenizer import write_tokenizer
from ktd.shapes.values import ValueSource

_SHARD_BYTES = 4 << 30
_THREADS = 4
# For the tokenizer, the headers and the index.
_SMALL_FILES = 64 << 20

Numbered = tuple[int, Tensor]


@dataclass(frozen=True, slots=True)
class Written:
    """What was written: weight files, and their bytes."""

    files: int
    num_bytes: int


class CheckpointWriter:
    """Writes one folder.

    Args:
        generated: The model and its seed.
        folder: Where to; must not exist, or be empty.
        with_experts: Write the experts too; else describe them, for the engine to generate.
        progress: Told the bytes that were just written, from several threads.
    """

    def __init__(
        self,
        generated: Generated,
        folder: Path,
        *,
        with_experts: bool,
        progress: Callable[[int], None],
    ) -> None:
        self._generated = generated
        self._folder = folder
        self._with_experts = with_experts
        self._progress = progress
        self._source = ValueSource(generated.seed)
        self._tensors = [
            (number, tensor)
            for number, tensor in enumerate(generated.shape.tensors)
            if with_experts or not tensor.expert
        ]
        self._stop = threading.Event()

    @property
    def num_bytes(self) -> int:
        """Of the weight files."""
        return sum(tensor.num_bytes for _, tensor in self._tensors)

    def check(self) -> None:
        """Refuses, before anything is written, what cannot be.

        Raises:
            ConfigError: There is something in the folder, or nowhere to put it.
            DoesNotFit: The disk has too little room.
        """
        folder = self._folder
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"{folder} exists and is no empty folder; name another one")
        existing = next((at for at in (folder, *folder.parents) if at.is_dir()), Path.cwd())
        free, needed = shutil.disk_usage(existing).free, self.num_bytes + _SMALL_FILES
        if needed > free:
            hint = (
                ": --experts generated writes no experts, --layers fewer of them"
                if self._with_experts
                else ": free some, or take fewer --layers"
            )
            raise DoesNotFit(
                f"{folder} needs {needed / (1 << 30):.1f} GiB, and its disk has "
                f"{free / (1 << 30):.1f} GiB free{hint}",
                required_bytes=str(needed),
                available_bytes=str(free),
            )

    def write(self) -> Written:
        """Writes everything; ``config.json`` comes last, so half a folder is no model."""
        self._folder.mkdir(parents=True, exist_ok=True)
        shards = _shards(self._tensors)
        names = [f"model-{n + 1:05}-of-{len(shards):05}.safetensors" for n in range(len(shards))]
        paths = [self._folder / name for name in names]
        with ThreadPoolExecutor(_THREADS) as threads:
            try:
                for _ in threads.map(self._write_shard, paths, shards):
                    pass
            except BaseException:
                self._stop.set()
                raise
        self._write_index(names, shards)
        write_tokenizer(self._folder, self._generated.shape.config)
        if not self._with_experts:
            self._generated.write(self._folder)
        config = json.dumps(self._generated.shape.config, indent=2) + "\n"
        (self._folder / "config.json").write_text(config, encoding="utf-8")
        return Written(len(names), self.num_bytes)

    def _write_shard(self, path: Path, tensors: Sequence[Numbered]) -> None:
        with path.open("wb", buffering=0) as file:
            file.write(_header([tensor for _, tensor in tensors]))
            for number, tensor in tensors:
                for part in self._source.parts(tensor, number, 0, tensor.num_bytes):
                    if self._stop.is_set():
                        return
                    done = 0
                    while done < part.nbytes:
                        done += file.write(part[done:])
                self._progress(tensor.num_bytes)

    def _write_index(self, names: Sequence[str], shards: Sequence[Sequence[Numbered]]) -> None:
        index = {
            "metadata": index_metadata(self.num_bytes),
            "weight_map": {
                tensor.name: name
                for name, shard in zip(names, shards, strict=True)
                for _, tensor in shard
            },
        }
        path = self._folder / INDEX
        path.write_text(json.dumps(index), encoding="utf-8")


def _shards(tensors: Sequence[Numbered]) -> list[list[Numbered]]:
    shards: list[list[Numbered]] = [[]]
    size = 0
    for number, tensor in tensors:
        if shards[-1] and size + tensor.num_bytes > _SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append((number, tensor))
        size += tensor.num_bytes
    return shards


def _header(tensors: Sequence[Tensor]) -> bytes:
    entries, at = {}, 0
    for tensor in tensors:
        offsets = [at, at + tensor.num_bytes]
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": offsets,
        }
        at = offsets[1]
    text = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    text += b" " * (-len(text) % 8)  # what follows is aligned
    return len(text).to_bytes(8, "little") + text
