"""Measures the CPU kernels on one core of a host that has other work to do.

`ktd bench kernels` times calls by the clock and wants a host of its own. Here one thread computes,
and what counts is the time in which it had the core. The ceilings are the best of samples taken
between the calls, so the shares are of what the host does at its best; other work still takes
bandwidth and cache from the calls.

    python scripts/kernels_one_core.py [--cpu 0] [--isa avx2] [--format bf16,int8] [--tokens 1,4,16]
                                       [--seconds 2] [--shape qwen3-30b-a3b] [--cached]

A shape can also be HIDDENxINTERMEDIATExEXPERTS, all of which compute. With --cached the same
experts are read again and again: the time that is left when memory is out of the way. They have to
fit into the cache that is meant.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from ktd.bench.kernels.calls import pinned
from ktd.bench.kernels.catalogue import choose_formats
from ktd.bench.kernels.host import Host
from ktd.bench.kernels.layers import LayerSet
from ktd.bench.kernels.routing import Routing
from ktd.bench.kernels.spread import quantile
from ktd.bench.kernels.units import best_unit
from ktd.experts import _native
from ktd.experts.pool import ExpertPool
from ktd.shapes.moe import MoeShape, shape_called

UNITS = ("avx2_f32", "avx2_int16", "avx_vnni_int8")
UNITS_512 = ("avx512_f32", "avx512_bf16", "avx512_vnni_int8")
_SLICE = 2e-4  # seconds of a ceiling of which the median is taken
_CALLS = 8  # between two samples
_FEWEST = 5


class Best:
    """The best that one thread was seen to do: bytes a second, and operations a second by unit."""

    def __init__(self, cpu: int, units: Sequence[str]) -> None:
        self._ceilings = _native.Ceilings(1 << 29, [cpu])
        self.read = 0.0
        self.peaks = dict.fromkeys(units, 0.0)
        for unit in units:
            self.sample(unit)

    def sample(self, unit: str) -> None:
        """One more sample of memory and of ``unit``."""
        self.read = max(self.read, self._ceilings.read_rate(1, 0.008, 4096, _SLICE)[0])
        peak = self._ceilings.peak_rate(unit, 1, 0.01, _SLICE)[0]
        self.peaks[unit] = max(self.peaks[unit], peak)


def caller(pool: ExpertPool, layers: LayerSet, tokens: int) -> Callable[[], tuple[float, int]]:
    """What makes one call: seconds on the core, and bytes of its distinct experts."""
    shape, plan = layers.shape, layers.plan
    handles = [pool.add_layer(layer) for layer in layers.layers]
    routing = Routing(
        layers=plan.layers,
        experts=plan.experts,
        top_k=shape.top_k,
        expert_bytes=plan.expert_bytes,
        rest_bytes=2 * Host.read().last_level_cache,
    )
    x = torch.randn(tokens, shape.hidden).bfloat16()
    weights = np.full((tokens, shape.top_k), 1 / shape.top_k, dtype=np.float32)
    out = np.empty((tokens, shape.hidden), dtype=np.float32)
    forward = pool.native.forward

    def call() -> tuple[float, int]:
        layer, ids = routing.draw(tokens)
        to = (x.data_ptr(), ids.ctypes.data, weights.ctypes.data, out.ctypes.data)
        before = time.thread_time_ns()
        size = forward(handles[layer], *to, tokens, shape.top_k)
        return (time.thread_time_ns() - before) / 1e9, size

    return call


def line(best: Best, unit: str, operations: int, calls: list[tuple[float, int]]) -> str:
    """Median and 90th percentile of the calls' shares, and their best."""
    peak = best.peaks[unit]
    shares = [max(size / best.read, operations / peak) / took for took, size in calls]
    memory = statistics.median(size for _, size in calls) / best.read > operations / peak
    took = statistics.median(seconds for seconds, _ in calls)
    speed = statistics.median(size / seconds for seconds, size in calls) / 1e9
    figures = (f"{took * 1e6:.0f}", f"{speed:.1f}", f"{operations / took / 1e9:.0f}")
    quantiles = (f"{quantile(shares, share):.2f}" for share in (0.5, 0.9, 1.0))
    return " | ".join((*figures, *quantiles, "memory" if memory else unit))


def shape_of(text: str) -> MoeShape:
    """A model's, or one given by its numbers."""
    numbers = text.split("x")
    if not all(number.isdigit() for number in numbers):
        return shape_called(text)
    hidden, intermediate, experts = map(int, numbers)
    return MoeShape(text, 4096, hidden, intermediate, experts)


def main() -> None:
    """Prints one line of a table for each cell."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cpu", type=int, default=0)
    parser.add_argument("--isa", default="avx2")
    parser.add_argument("--format", default="bf16,fp8_block,fp8_channel,int8,int4,mxfp4")
    parser.add_argument("--tokens", default="1,4,16,256,1024")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--shape", default="qwen3-30b-a3b")
    parser.add_argument("--cached", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    best = Best(args.cpu, UNITS if args.isa.startswith("avx2") else UNITS_512)
    shape = shape_of(args.shape)
    cells = []
    for name in choose_formats(tuple(args.format.split(",")), args.isa):
        host = Host.read()
        layers = LayerSet.make(
            replace(shape, experts=shape.top_k) if args.cached else shape,
            name,
            cache=1 if args.cached else host.last_level_cache,
            available=host.available,
            progress=print,
        )
        unit = best_unit(name.value, args.isa, best.peaks)
        for tokens in map(int, args.tokens.split(",")):
            call = caller(ExpertPool(threads=1, isa=args.isa), layers, tokens)
            calls: list[tuple[float, int]] = []
            with pinned(args.cpu):
                call()
                end = time.monotonic() + args.seconds
                while time.monotonic() < end or len(calls) < _FEWEST:
                    if len(calls) % _CALLS == 0:
                        best.sample(unit)
                    calls.append(call())
            cells.append((name.value, tokens, unit, calls))
    print({unit: f"{peak / 1e9:.0f} Gop/s" for unit, peak in best.peaks.items()})
    print(f"memory {best.read / 1e9:.1f} GB/s")
    print("| format | ISA | tokens | µs | GB/s | Gop/s | of floor | p90 | best | bound by |")
    for name, tokens, unit, calls in cells:
        operations = shape.operations(tokens)
        print(f"| {name} | {args.isa} | {tokens} | {line(best, unit, operations, calls)} |")


if __name__ == "__main__":
    main()
