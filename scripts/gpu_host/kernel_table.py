"""Measures forward() for each ISA on one layer of qwen3-30b-a3b's shape, and prints a table.

The layer's 1.2 GB are larger than a last-level cache, and the experts of each call are drawn at
random, so the bytes come from memory. GB/s are bytes of the distinct experts over wall time.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from ktd.experts.isa import isas
from ktd.experts.pool import ExpertPool
from ktd.experts.store import HostStore
from ktd.experts.weights import ExpertWeights, WeightFormat

EXPERTS, HIDDEN, INTERMEDIATE, TOP_K = 128, 2048, 768, 8
TOKENS = (1, 4, 16)
WARM_UPS = 3
MIN_CALLS = 5
SECONDS = 2.0  # for each cell


def make_layer() -> tuple[torch.Tensor, torch.Tensor]:
    """Random weights in the memory that the engine would use."""
    store = HostStore()
    w13 = store.allocate((EXPERTS, 2 * INTERMEDIATE, HIDDEN), torch.bfloat16)
    w2 = store.allocate((EXPERTS, HIDDEN, INTERMEDIATE), torch.bfloat16)
    return w13.normal_(0, 0.02), w2.normal_(0, 0.02)


def measure(pool: ExpertPool, layer: int, tokens: int) -> tuple[float, float, float]:
    """Median and 99th percentile of a call in microseconds, and median GB/s."""
    x = torch.randn(tokens, HIDDEN).bfloat16()
    weights = torch.rand(tokens, TOP_K)
    out = torch.empty(tokens, HIDDEN)
    times: list[float] = []
    rates: list[float] = []
    started = time.perf_counter()
    calls = 0
    while calls < WARM_UPS + MIN_CALLS or time.perf_counter() - started < SECONDS:
        ids = torch.rand(tokens, EXPERTS).topk(TOP_K).indices.int()
        bytes_before = pool.bytes_read
        before = time.perf_counter()
        pool.forward(layer, x, ids, weights, out)
        took = time.perf_counter() - before
        calls += 1
        if calls > WARM_UPS:
            times.append(took * 1e6)
            rates.append((pool.bytes_read - bytes_before) / took / 1e9)
    p99 = sorted(times)[int(0.99 * (len(times) - 1))]
    return statistics.median(times), p99, statistics.median(rates)


def main() -> None:
    """Print the kernels that this CPU can run, or measure them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--isas", action="store_true", help="only list the kernels")
    arguments = parser.parse_args()
    for isa in isas():
        state = "runs here" if isa.supported else f"not here, lacks {' '.join(isa.missing)}"
        print(f"{isa.name}: {state}")
    if arguments.isas:
        return
    torch.manual_seed(0)
    w13, w2 = make_layer()
    print("\n| ISA | threads | tokens | median µs | p99 µs | GB/s |\n|---|---|---|---|---|---|")
    for isa in isas():
        if not isa.supported:
            continue
        pool = ExpertPool(isa=isa.name)
        layer = pool.add_layer(ExpertWeights(WeightFormat.BF16, w13, w2))
        for tokens in TOKENS:
            median, p99, rate = measure(pool, layer, tokens)
            cells = (isa.name, pool.threads, tokens, f"{median:.0f}", f"{p99:.0f}", f"{rate:.1f}")
            print("|", " | ".join(map(str, cells)), "|", flush=True)


if __name__ == "__main__":
    main()
