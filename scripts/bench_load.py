"""Measures how fast experts are loaded, next to a plain read of the same files in the same run.

Writes a checkpoint of random bytes with the tensors of one model shape, once; then, in turns and
each time from the disk (the page cache is dropped with posix_fadvise): reads it plainly in the
reader's number of threads, loads it the way `ktd serve` does, and loads it the way SGLang's own
iterator does (mapped files, copied in one thread).

    python scripts/bench_load.py [--gib 4] [--rounds 3] [--folder DIR]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from ktd.experts.pool import ExpertPool
from ktd.experts.store import HostStore
from ktd.sgl.expert_loader import ExpertLoader
from ktd.sgl.weight_reader import WeightReader

# Qwen3-30B-A3B: 9 MiB an expert.
HIDDEN, WIDTH = 2048, 768
EXPERTS = 128
EXPERT_BYTES = 3 * HIDDEN * WIDTH * 2
THREADS = 8


def write_checkpoint(folder: Path, layers: int) -> list[str]:
    """One file for each layer."""
    files = []
    random = torch.Generator().manual_seed(1)
    for layer in range(layers):
        tensors = {}
        for expert in range(EXPERTS):
            name = f"model.layers.{layer}.mlp.experts.{expert}"
            for shard, shape in (("w1", (WIDTH, HIDDEN)), ("w2", (HIDDEN, WIDTH))):
                tensors[f"{name}.{shard}.weight"] = _random(shape, random)
            tensors[f"{name}.w3.weight"] = _random((WIDTH, HIDDEN), random)
        path = folder / f"layer-{layer}.safetensors"
        save_file(tensors, path)
        with path.open("rb") as file:
            os.fsync(file.fileno())
        files.append(str(path))
    return files


def _random(shape: tuple[int, int], random: torch.Generator) -> torch.Tensor:
    words = torch.randint(-(2**62), 2**62, (shape[0] * shape[1] // 4,), generator=random)
    return words.view(torch.bfloat16).view(shape)


def drop_cache(files: list[str]) -> None:
    """So that the next reader reads from the disk."""
    for name in files:
        with Path(name).open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_plainly(files: list[str]) -> None:
    """What a copy of the files costs: large reads into the same few megabytes."""
    piece = 8 << 20

    def read(name: str, start: int, end: int) -> None:
        buffer = bytearray(piece)
        with Path(name).open("rb", buffering=0) as file:
            file.seek(start)
            while start < end:
                start += file.readinto(buffer) or piece

    with ThreadPoolExecutor(THREADS) as threads:
        for name in files:
            size = Path(name).stat().st_size
            for start in range(0, size, 64 << 20):
                threads.submit(read, name, start, min(size, start + (64 << 20)))


def sglangs_loader(
    parameter: nn.Parameter, weight: torch.Tensor, _name: str, shard: str, expert: int
) -> None:
    """What SGLang's weight_loader does for BF16: the rows of a shard into the expert's."""
    rows = {"w1": slice(0, WIDTH), "w3": slice(WIDTH, 2 * WIDTH), "w2": slice(None)}[shard]
    parameter.data[expert][rows].copy_(weight)


def load(files: list[str], reader: WeightReader | None, pool: ExpertPool | None) -> None:
    """Fills a new host store."""
    store = HostStore()
    loaders: dict[str, tuple[ExpertLoader, dict[str, nn.Parameter]]] = {}
    with torch.device("meta"):
        template = {
            "w13_weight": nn.Parameter(
                torch.empty(EXPERTS, 2 * WIDTH, HIDDEN, dtype=torch.bfloat16)
            ),
            "w2_weight": nn.Parameter(torch.empty(EXPERTS, HIDDEN, WIDTH, dtype=torch.bfloat16)),
        }
    for layer in range(len(files)):
        loader = ExpertLoader(
            template,
            store=store,
            load=sglangs_loader,
            loaded=lambda _: None,
            reader=reader,
            place=None if pool is None else pool.place,
        )
        slots = {parameter: nn.Parameter(torch.empty(1)) for parameter in template}
        for parameter, slot in slots.items():
            loader.attach(parameter, slot)
        loaders[str(layer)] = (loader, slots)
    for name, tensor in mapped(files) if reader is None else reader.tensors(files):
        _, _, number, _, _, expert, shard, _ = name.split(".")
        loader, slots = loaders[number]
        slot = slots["w2_weight" if shard == "w2" else "w13_weight"]
        loader(slot, tensor, name, shard, int(expert))
    for loader, _ in loaders.values():
        loader.finish()
        if loader.missing() is not None:
            raise SystemExit(loader.missing())


def mapped(files: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """SGLang's safetensors_weights_iterator."""
    for name in files:
        with safe_open(name, framework="pt", device="cpu") as file:
            for key in file.keys():  # noqa: SIM118 - it is no mapping
                yield key, file.get_tensor(key)


def load_as_ktd(files: list[str]) -> None:
    """As `ktd serve` does."""
    reader = WeightReader(THREADS)
    load(files, reader, ExpertPool())
    reader.close()


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="on the disk to measure")
    args = parser.parse_args()
    ways: dict[str, Callable[[list[str]], None]] = {
        "plain read": read_plainly,
        "ktd": load_as_ktd,
        "mapped, one thread": lambda files: load(files, None, None),
    }
    layers = max(1, round(args.gib * (1 << 30) / (EXPERTS * EXPERT_BYTES)))
    size = layers * EXPERTS * EXPERT_BYTES
    speeds: dict[str, list[float]] = {way: [] for way in ways}
    work: dict[str, list[float]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        files = write_checkpoint(Path(folder), layers)
        # A virtual machine's memory may not be there before it is used for the first time.
        load_as_ktd(files)
        for _ in range(args.rounds):
            for way, run in ways.items():
                drop_cache(files)
                start, cpu = time.perf_counter(), time.process_time()
                run(files)
                speeds[way].append(size / (time.perf_counter() - start) / 1e9)
                work[way].append((time.process_time() - cpu) / size * 1e9)
    print(f"{size / (1 << 30):.2f} GiB of experts, {args.rounds} rounds, {THREADS} threads")
    for way, values in speeds.items():
        rounds = ", ".join(f"{value:.2f}" for value in values)
        ratios = [value / plain for value, plain in zip(values, speeds["plain read"], strict=True)]
        print(
            f"{way:20} {statistics.median(values):6.2f} GB/s ({rounds})   "
            f"{statistics.median(ratios):.2f} of the plain read, "
            f"{statistics.median(work[way]):.2f} s of CPU a GB"
        )


if __name__ == "__main__":
    main()
