"""Measures how fast experts are loaded, next to a plain read of the same files in the same run.

Writes a checkpoint of random bytes with the tensors of one model shape, once; then, in turns and
each time from the disk (the page cache is dropped with posix_fadvise): reads it plainly in the
reader's number of threads, loads it the way `ktd serve` does, and loads it the way SGLang's own
iterator does (mapped files, copied in one thread). ktd's first step, memory for all experts, is
timed by itself: it needs no disk.

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
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
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


Layers = dict[str, tuple[ExpertLoader, dict[str, nn.Parameter]]]


def make_layers(count: int, reader: WeightReader | None, pool: ExpertPool | None) -> Layers:
    """The host store of all layers; with a pool its memory is there afterwards."""
    store = HostStore()
    with torch.device("meta"):
        template = {
            "w13_weight": nn.Parameter(
                torch.empty(EXPERTS, 2 * WIDTH, HIDDEN, dtype=torch.bfloat16)
            ),
            "w2_weight": nn.Parameter(torch.empty(EXPERTS, HIDDEN, WIDTH, dtype=torch.bfloat16)),
        }
    layers: Layers = {}
    for layer in range(count):
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
        layers[str(layer)] = (loader, slots)
    return layers


def load(layers: Layers, tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
    """What a model's load_weights does."""
    for name, tensor in tensors:
        _, _, number, _, _, expert, shard, _ = name.split(".")
        loader, slots = layers[number]
        slot = slots["w2_weight" if shard == "w2" else "w13_weight"]
        loader(slot, tensor, name, shard, int(expert))
    for loader, _ in layers.values():
        loader.finish()
        if loader.missing() is not None:
            raise SystemExit(loader.missing())


def mapped(files: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """SGLang's safetensors_weights_iterator."""
    for name in files:
        with safe_open(name, framework="pt", device="cpu") as file:
            for key in file.keys():  # noqa: SIM118 - it is no mapping
                yield key, file.get_tensor(key)


@dataclass
class Timed:
    """Speeds and CPU seconds a GB of one step, a value for each round."""

    size: int
    speeds: list[float] = field(default_factory=list)
    work: list[float] = field(default_factory=list)

    @contextmanager
    def round(self) -> Iterator[None]:
        """Times the block."""
        start, cpu = time.perf_counter(), time.process_time()
        yield
        self.speeds.append(self.size / (time.perf_counter() - start) / 1e9)
        self.work.append((time.process_time() - cpu) / self.size * 1e9)

    def line(self, plain: Timed) -> str:
        """For people."""
        ratios = [mine / other for mine, other in zip(self.speeds, plain.speeds, strict=True)]
        rounds = ", ".join(f"{speed:.2f}" for speed in self.speeds)
        return (
            f"{statistics.median(self.speeds):6.2f} GB/s ({rounds})   "
            f"{statistics.median(ratios):.2f} of the plain read, "
            f"{statistics.median(self.work):.2f} s of CPU a GB"
        )


def measure(files: list[str], rounds: int, timed: dict[str, Timed]) -> None:
    """Every way once a round, from the disk into memory that is there."""
    reader = WeightReader(THREADS)
    with timed["memory"].round():
        layers = make_layers(len(files), reader, ExpertPool())
    others = make_layers(len(files), None, None)
    ways: dict[str, Callable[[], None]] = {
        "plain read": lambda: read_plainly(files),
        "ktd": lambda: load(layers, reader.tensors(files)),
        "mapped, one thread": lambda: load(others, mapped(files)),
    }
    for number in range(rounds + 1):
        for way, run in ways.items():
            drop_cache(files)
            # The first round is not counted: a virtual machine's memory, also that of its page
            # cache, may not be there before it is used for the first time.
            with timed[way].round() if number else nullcontext():
                run()
    reader.close()


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="on the disk to measure")
    args = parser.parse_args()
    count = max(1, round(args.gib * (1 << 30) / (EXPERTS * EXPERT_BYTES)))
    size = count * EXPERTS * EXPERT_BYTES
    timed = {step: Timed(size) for step in ("plain read", "ktd", "mapped, one thread", "memory")}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        measure(write_checkpoint(Path(folder), count), args.rounds, timed)
    print(f"{size / (1 << 30):.2f} GiB of experts, {args.rounds} rounds, {THREADS} threads")
    memory = timed.pop("memory")
    print(f"{'memory for them':20} {memory.speeds[0]:6.2f} GB/s, once, before reading")
    for step, times in timed.items():
        print(f"{step:20} {times.line(timed['plain read'])}")


if __name__ == "__main__":
    main()
