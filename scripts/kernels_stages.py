"""Takes stages out of a call of the pool, to show what bounds it at one token.

    python scripts/kernels_stages.py [--format int8,bf16] [--threads 1,16] [--seconds 3]
                                     [--shape qwen3-30b-a3b] [--json FILE]

In turns, so that all meet the same minute, for each format and number of threads:

    loop        the plain read loop, running on: bytes of a call ÷ its rate
    pass        the plain read loop over as many bytes as the call has, from a common start to a
                common end
    two passes  two of these, of 2/3 and 1/3 of the bytes, as a call has two phases
    call        a call, of experts that no cache holds
    cached      the same experts again and again: the call without memory
    cached half half of them, which a core's own cache may hold; times two
    empty       a call without experts: without memory and arithmetic

A plain read loop computes nothing, so what `two passes` takes more than `loop` is lost to starts
and ends, and what `call` takes more than `two passes` is the kernels'.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ktd.bench.kernels.calls import Calls, pinned
from ktd.bench.kernels.catalogue import choose_formats
from ktd.bench.kernels.ceilings import HostCeilings
from ktd.bench.kernels.host import Host
from ktd.bench.kernels.layers import CACHES, LayerSet
from ktd.bench.kernels.spread import quantile
from ktd.experts.pool import ExpertPool
from ktd.shapes.moe import shape_called

STAGES = ("loop", "pass", "two passes", "call", "cached", "cached half", "empty")
_WINDOW = 0.025  # seconds of one stage in a turn
_SLICE = 1e-3
_FEWEST = 3


class Stages:
    """One format and number of threads: microseconds of every stage, a median for each turn."""

    def __init__(self, calls: Calls, ceilings: HostCeilings) -> None:
        self._calls, self._ceilings = calls, ceilings
        self._threads = min(calls.pool.threads, ceilings.threads)
        self._weights = np.full((1, calls.top_k), 1 / calls.top_k, dtype=np.float32)
        self._out = np.empty((1, calls.x.shape[1]), dtype=np.float32)
        self.bytes = calls.top_k * calls.layers.plan.expert_bytes
        self.turns: dict[str, list[float]] = defaultdict(list)

    def turn(self) -> None:
        """Every stage once more."""
        size, threads = self.bytes, self._threads
        fixed = np.arange(self._calls.top_k, dtype=np.int32)[None]
        half = np.where(fixed < self._calls.top_k // 2, fixed, -1).astype(np.int32)
        rate = self._ceilings.dram(_WINDOW, _SLICE, threads).typical
        self._note("loop", size / rate)
        self._note("pass", self._pass(size))
        self._note("two passes", self._pass(size * 2 // 3) + self._pass(size // 3))
        self._note("call", statistics.median(call.seconds for call in self._calls.window(_WINDOW)))
        self._note("cached", self._forward(fixed))
        self._note("cached half", 2 * self._forward(half))
        self._note("empty", self._forward(np.full_like(fixed, -1)))

    def _note(self, stage: str, seconds: float) -> None:
        self.turns[stage].append(seconds * 1e6)

    def _pass(self, size: int) -> float:
        # The first finds the threads of the loop just woken.
        return statistics.median(self._ceilings.passes(self._threads, size, _WINDOW)[1:])

    def _forward(self, ids: npt.NDArray[np.int32]) -> float:
        """Seconds of a call of layer 0 with these experts, median of a window."""
        calls, times = self._calls, []
        ids = np.ascontiguousarray(ids)
        to = (calls.x.data_ptr(), ids.ctypes.data, self._weights.ctypes.data, self._out.ctypes.data)
        forward = calls.pool.native.forward
        with pinned(calls.pool.native.cpus[0]):
            end = time.perf_counter() + _WINDOW
            while time.perf_counter() < end:
                before = time.perf_counter_ns()
                forward(0, *to, 1, calls.top_k)
                times.append((time.perf_counter_ns() - before) / 1e9)
        return statistics.median(times[len(times) // 4 :])  # the cache is filled by the first


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """All cells."""
    host, shape, isa = Host.read(), shape_called(args.shape), args.isa or ExpertPool(threads=1).isa
    ceilings = HostCeilings(CACHES * host.last_level_cache)
    ceilings.sweep(print)
    rows = []
    for name in choose_formats(tuple(args.format.split(",")), isa):
        layers = LayerSet.make(
            shape,
            name,
            cache=host.last_level_cache,
            available=Host.read().available,
            progress=print,
        )
        for threads in map(int, args.threads.split(",")):
            pool = ExpertPool(threads=threads, isa=isa)
            stages = Stages(Calls(pool, layers, 1, cache=host.last_level_cache), ceilings)
            end = time.monotonic() + args.seconds
            while time.monotonic() < end or len(stages.turns["call"]) < _FEWEST:
                stages.turn()
            rows.append(row(name.value, isa, threads, stages))
            print(markdown(rows[-1]), flush=True)
    return rows


def row(name: str, isa: str, threads: int, stages: Stages) -> dict[str, Any]:
    """For ``--json``."""
    floors = stages.turns["loop"]
    figures = {
        stage: {
            "median_us": statistics.median(times),
            "p10_us": quantile(times, 0.1),
            "p90_us": quantile(times, 0.9),
            "of_loop": statistics.median(
                floor / took for floor, took in zip(floors, times, strict=True)
            ),
        }
        for stage, times in stages.turns.items()
    }
    facts = {"format": name, "isa": isa, "threads": threads, "bytes": stages.bytes}
    return {**facts, "turns": len(floors), "stages": figures}


def markdown(cell: dict[str, Any]) -> str:
    """A line of the table: microseconds, and the loop's share of them."""
    stages = cell["stages"]
    figures = " | ".join(
        f"{stages[stage]['median_us']:.0f} ({stages[stage]['of_loop']:.2f})"
        if stage != "empty"
        else f"{stages[stage]['median_us']:.1f}"
        for stage in STAGES
    )
    return f"| {cell['format']} | {cell['isa']} | {cell['threads']} | {figures} |"


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", default="qwen3-30b-a3b")
    parser.add_argument("--format", default="int8,bf16")
    parser.add_argument("--threads", default="1,16")
    parser.add_argument("--isa", default="")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    print(f"| format | ISA | threads | {' | '.join(f'{stage}, µs' for stage in STAGES)} |")
    rows = measure(args)
    if args.json is not None:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
