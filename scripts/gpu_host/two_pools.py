"""The bandwidth of two ranks' pools by that of one with all the cores, on the very same memory.

    python3 scripts/gpu_host/two_pools.py [--json FILE] [--gib 13.5] [--tokens 1,8] [--rounds 5]

Two engines beside each other (two_gpus.py) do not read the same memory, and on a virtual host not
all memory is equally fast. Here one mapping holds layers of Qwen3-30B-A3B's shape in BF16, which
one process computes whole, on all the pool's cores, and then two at once, each the half of every
expert on half the cores, as tensor-parallel ranks do: same bytes, same pages, in turn. A layer has
been read when the later one has. No GPU is needed.
"""

from __future__ import annotations

import argparse
import json
import mmap
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ktd.bench.summary import Summary
from ktd.experts.pool import ExpertPool
from ktd.experts.store import HostStore
from ktd.experts.weights import ExpertWeights, WeightFormat
from ktd.sgl.cores import cores_allowed, pool_cores
from tests.device import gpus

HIDDEN, INNER, EXPERTS, TOP_K = 2048, 768, 128, 8
LAYER = EXPERTS * 3 * INNER * HIDDEN  # numbers
CALLS = 192
RANKS = (1, 2)
BAR = 0.95
_SPIN_US = 2000  # as of an engine's pool between two layers
_LATE_SECONDS = 60.0
_FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Share:
    """One process: a rank of so many, its cores, and where it says that it is ready."""

    rank: int
    ranks: int
    cpus: tuple[int, ...]
    arrivals: np.ndarray[Any, Any]

    def layer(self, memory: torch.Tensor) -> ExpertWeights:
        """Its part of a layer's experts."""
        inner = INNER // self.ranks
        part = memory.view(self.ranks, -1)[self.rank]
        gate_up, down = part.split([2 * EXPERTS * HIDDEN * inner, EXPERTS * HIDDEN * inner])
        return ExpertWeights(
            WeightFormat.BF16,
            gate_up.view(EXPERTS, 2 * inner, HIDDEN),
            down.view(EXPERTS, HIDDEN, inner),
        )

    def wait_for_others(self, count: int) -> None:
        """Until each process has come to its call of this number."""
        self.arrivals[self.rank * 8] = count
        deadline = time.monotonic() + _LATE_SECONDS
        while any(self.arrivals[other * 8] < count for other in range(self.ranks)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"rank {self.rank}: another one has ended or hangs")


def compute(share: Share, memory: torch.Tensor, asked: Connection) -> None:
    """A process: computes as it is asked, and answers with each call's begin, end and bytes."""
    torch.set_num_threads(1)
    pool = ExpertPool(threads=len(share.cpus), cpus=share.cpus, spin_us=_SPIN_US)
    handles = [pool.add_layer(share.layer(layer)) for layer in memory]
    os.sched_setaffinity(0, {pool.native.cpus[0]})
    asked.send(pool.isa)
    count = 0
    while (tokens := asked.recv()) is not None:
        chance = np.random.default_rng(tokens)  # all ranks draw the same
        ids = np.stack(
            [
                np.argsort(chance.random((tokens, EXPERTS)), axis=1)[:, :TOP_K].astype(np.int32)
                for _ in range(CALLS)
            ]
        )
        x = torch.randn(tokens, HIDDEN).bfloat16()
        weights = np.full((tokens, TOP_K), 1 / TOP_K, dtype=np.float32)
        out = np.empty((tokens, HIDDEN), dtype=np.float32)
        calls = []
        for call in range(CALLS):
            count += 1
            share.wait_for_others(count)
            began = time.monotonic_ns()
            num_bytes = pool.native.forward(
                handles[call % len(handles)],
                x.data_ptr(),
                ids[call].ctypes.data,
                weights.ctypes.data,
                out.ctypes.data,
                tokens,
                TOP_K,
            )
            calls.append((began, time.monotonic_ns(), num_bytes))
        asked.send(calls)


@dataclass(frozen=True, slots=True)
class Call:
    """One layer: from the first beginning to the last end."""

    seconds: float
    num_bytes: int


def together(of_ranks: Sequence[Sequence[tuple[int, int, int]]]) -> list[Call]:
    """The calls of one round, of all ranks."""
    found = []
    for calls in zip(*of_ranks, strict=True):
        begins, ends, sizes = zip(*calls, strict=True)
        found.append(Call((max(ends) - min(begins)) / 1e9, sum(sizes)))
    return found


def rate(calls: Sequence[Call]) -> float:
    """Bytes a second."""
    return sum(call.num_bytes for call in calls) / sum(call.seconds for call in calls)


def shares() -> list[list[Share]]:
    """The processes of one rank, and of two."""
    found = []
    gpu = gpus() > 0  # then some cores are the engine's
    threads = pool_cores(None, 0, 1, quota=float("inf"), gpu=gpu).threads
    for ranks in RANKS:
        arrivals = np.frombuffer(mmap.mmap(-1, 4096), np.int64)
        group = []
        for rank in range(ranks):
            cores = pool_cores(None, rank, ranks, quota=float("inf"), gpu=gpu)
            cpus = cores.cpus or tuple(core[0] for core in cores_allowed())
            count = cores.threads or threads or len(cpus)
            group.append(Share(rank, ranks, cpus[:count], arrivals))
        found.append(group)
    return found


def main() -> int:
    """Measures and prints; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--gib", type=float, default=13.5, help="of experts")
    parser.add_argument(
        "--tokens", type=lambda text: [int(n) for n in text.split(",")], default=[1, 8]
    )
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    layers = max(1, int(args.gib * (1 << 30) / (2 * LAYER)))
    store = HostStore()
    memory = store.allocate((layers, LAYER), torch.bfloat16)
    memory[0].normal_(0, 0.02)
    for layer in memory[1:]:
        layer.copy_(memory[0])
    groups = []
    for group in shares():
        pipes = []
        for share in group:
            mine, theirs = _FORK.Pipe()
            _FORK.Process(target=compute, args=(share, memory, theirs), daemon=True).start()
            theirs.close()  # so that a process that fails is an end of file here
            pipes.append(mine)
            isa = mine.recv()
        groups.append(pipes)
        print(f"{len(group)} process(es), {[share.cpus for share in group]}, {isa}", flush=True)
    rates: dict[int, dict[int, list[float]]] = {}
    last: dict[int, dict[int, list[dict[str, float]]]] = {}
    missed = False
    for tokens in args.tokens:
        rates[tokens], last[tokens] = {ranks: [] for ranks in RANKS}, {}
        for number in range(args.rounds + 1):
            for ranks, pipes in zip(RANKS, groups, strict=True):
                for pipe in pipes:
                    pipe.send(tokens)
                calls = together([pipe.recv() for pipe in pipes])
                last[tokens][ranks] = [asdict(call) for call in calls]
                if number:  # the first is not counted
                    rates[tokens][ranks].append(rate(calls))
        one, two = (rates[tokens][ranks] for ranks in RANKS)
        ratio = Summary.of([b / a for a, b in zip(one, two, strict=True)])
        reached = ratio.median >= BAR
        missed |= not reached
        print(
            f"{tokens} token(s): one {statistics.median(one) / 1e9:.1f} GB/s, "
            f"two {statistics.median(two) / 1e9:.1f}; {ratio.text(3)} of {BAR}: "
            f"{'reached' if reached else 'MISSED'}",
            flush=True,
        )
    if args.json:
        cpus = [[share.cpus for share in group] for group in shares()]
        args.json.write_text(json.dumps({"cpus": cpus, "rates": rates, "calls": last}) + "\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
