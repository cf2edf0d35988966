"""Measures both kinds of `--host-memory`: how long a load takes, its memory, how fast reads are.

Writes a checkpoint of random bytes (scripts/bench_load.py's) and loads it as a copy and mapped,
from the disk and from the page cache, each in a process of its own. Then one process has both, and
the pool computes calls over experts drawn at random from one and the other in turn, so that both
see the same host.

    python scripts/host_memory_speed.py [--gib 4] [--rounds 7] [--threads N] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch._dynamo  # takes a second when it is first wanted; in an engine it is there by then
from bench_load import EXPERTS, HIDDEN, THREADS, WIDTH, drop_cache, sglangs_loader, write_checkpoint
from torch import nn

from ktd.experts.pool import ExpertPool
from ktd.experts.scattered import scattered
from ktd.experts.store import HostStore
from ktd.experts.weights import ExpertWeights, WeightFormat
from ktd.sgl.expert_format import ExpertFormat
from ktd.sgl.expert_loader import ExpertLoader
from ktd.sgl.mapped_parameter import Mapper
from ktd.sgl.weight_reader import WeightReader

KINDS = ("copy", "mmap")
SHIFTED = "copy aligned as the file"
_LINE = 32  # elements in a cache line
TOP_K = 8
CALLS = 120
_FORMAT = ExpertFormat(WeightFormat.BF16, {"w13_weight": "w13", "w2_weight": "w2"})


def load(files: list[str], kind: str, pool: ExpertPool) -> list[ExpertWeights]:
    """All layers, as `ktd serve` loads them."""
    store = HostStore(mapped=kind == "mmap")
    reader = WeightReader(THREADS, mapped=store.mapped)
    layers = []
    for file in files:
        template = {
            "w13_weight": nn.Parameter(
                torch.empty(EXPERTS, 2 * WIDTH, HIDDEN, dtype=torch.bfloat16, device="meta")
            ),
            "w2_weight": nn.Parameter(
                torch.empty(EXPERTS, HIDDEN, WIDTH, dtype=torch.bfloat16, device="meta")
            ),
        }
        loader = ExpertLoader(
            template,
            store=store,
            load=sglangs_loader,
            loaded=lambda _: None,
            reader=reader,
            place=pool.place,
            mapper=Mapper(store, _FORMAT, interleaved=False) if store.mapped else None,
        )
        slots = {name: nn.Parameter(torch.empty(1)) for name in template}
        for name, slot in slots.items():
            loader.attach(name, slot)
        layers.append((file, loader, slots))
    for file, loader, slots in layers:
        for name, tensor in reader.tensors([file]):
            expert, shard = name.split(".")[5:7]
            slot = slots["w2_weight" if shard == "w2" else "w13_weight"]
            loader(slot, tensor, name, shard, int(expert))
    for _, loader, _ in layers:
        loader.finish()
    reader.close()
    found = []
    for _, loader, _ in layers:
        tensors = {_FORMAT.fields[name]: tensor for name, tensor in loader.tensors.items()}
        found.append(ExpertWeights(WeightFormat.BF16, **tensors))
    return found


def memory() -> dict[str, float]:
    """GiB of this process, by kind."""
    text = Path("/proc/self/status").read_text()
    return {
        name: int(re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)[1]) / (1 << 20)
        for name in ("RssAnon", "RssFile", "VmPTE")
    }


def time_load(files: list[str], kind: str, threads: int) -> None:
    """Prints one load's seconds and memory as JSON; run in a process of its own."""
    pool = ExpertPool(threads=threads)
    before, start = memory(), time.perf_counter()
    layers = load(files, kind, pool)
    seconds = time.perf_counter() - start
    took = {name: value - before[name] for name, value in memory().items()}
    print(json.dumps({"seconds": seconds, "layers": len(layers)} | took))


def compare_loads(files: list[str], threads: int, rounds: int) -> None:
    """Both kinds, from the disk and from the page cache, in turns."""
    size = sum(Path(file).stat().st_size for file in files)
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for _ in range(rounds):
        for kind in KINDS:
            for where in ("disk", "page cache"):
                if where == "disk":
                    drop_cache(files)
                command = [sys.executable, __file__, "--load", kind, "--threads", str(threads)]
                done = subprocess.run(
                    [*command, *files], check=True, capture_output=True, text=True
                )
                found.setdefault((kind, where), []).append(json.loads(done.stdout))
    for (kind, where), runs in found.items():
        seconds = statistics.median(run["seconds"] for run in runs)
        each = ", ".join(f"{run['seconds']:.2f}" for run in runs)
        took = ", ".join(
            f"{name} {statistics.median(run[name] for run in runs):.2f} GiB"
            for name in ("RssAnon", "RssFile", "VmPTE")
        )
        print(
            f"{kind} from the {where:10}  {seconds:6.2f} s ({each})  "
            f"{size / seconds / 1e9:5.2f} GB/s   {took}"
        )


def shifted(mapped: ExpertWeights) -> ExpertWeights:
    """A copy of mapped experts in memory of its own that begins where a line does as the file's."""
    store = HostStore()
    found = {}
    for name in ("w13", "w2"):
        tensor = getattr(mapped, name)
        pieces = []
        size = sum(piece.numel() for expert in tensor.pieces for piece in expert)
        memory = store.allocate((size + _LINE,), tensor.dtype)
        at = tensor.pieces[0][0].data_ptr() % (2 * _LINE) // 2
        for expert in tensor.pieces:
            row = []
            for piece in expert:
                row.append(memory[at : at + piece.numel()].view(piece.shape).copy_(piece))
                at += piece.numel()
            pieces.append(row)
        found[name] = scattered(pieces, tensor.shape)
    return ExpertWeights(WeightFormat.BF16, **found)


def compare_reads(files: list[str], threads: int, rounds: int) -> None:
    """GB/s of experts' weights, in turns."""
    pool = ExpertPool(threads=threads)
    made = {kind: load(files, kind, pool) for kind in KINDS}
    made[SHIFTED] = [shifted(layer) for layer in made["mmap"]]
    handles = {kind: [pool.add_layer(w) for w in layers] for kind, layers in made.items()}
    random = torch.Generator().manual_seed(1)
    for tokens in (1, 4, 16):
        speeds: dict[str, list[float]] = {kind: [] for kind in handles}
        x = torch.randn(tokens, HIDDEN, generator=random).bfloat16()
        weights = torch.ones(tokens, TOP_K)
        for _ in range(rounds + 1):
            ids = [
                torch.stack(
                    [torch.randperm(EXPERTS, generator=random)[:TOP_K] for _ in range(tokens)]
                )
                for _ in range(max(8, CALLS // tokens))
            ]
            for kind, layers in handles.items():
                before, start = pool.bytes_read, time.perf_counter()
                for i, chosen in enumerate(ids):
                    pool.forward(layers[i % len(layers)], x, chosen.int(), weights)
                seconds = time.perf_counter() - start
                speeds[kind].append((pool.bytes_read - before) / seconds / 1e9)
        base = speeds["copy"][1:]
        for kind, all_speeds in speeds.items():
            ratios = [mine / other for mine, other in zip(all_speeds[1:], base, strict=True)]
            print(
                f"{tokens:3} tokens, {kind:24} {statistics.median(all_speeds[1:]):6.1f} GB/s, "
                f"{statistics.median(ratios):.2f} of copy ({min(ratios):.2f} to {max(ratios):.2f})"
            )


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="on the disk to measure")
    parser.add_argument("--load", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("files", nargs="*", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load is not None:
        time_load(args.files, args.load, args.threads)
        return
    count = max(1, round(args.gib * (1 << 30) / (EXPERTS * 3 * HIDDEN * WIDTH * 2)))
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        files = write_checkpoint(Path(folder), count)
        compare_loads(files, args.threads, max(1, args.rounds // 2))
        compare_reads(files, args.threads, args.rounds)


if __name__ == "__main__":
    main()
