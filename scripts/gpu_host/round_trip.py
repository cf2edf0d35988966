"""What the CPU path costs a layer inside a CUDA graph: without work for the pool, and with it.

    python scripts/gpu_host/round_trip.py [--json FILE]

Needs a GPU, torch and ktd's extension. The first table replays graphs of 48 layers whose stand-in
for the GPU's experts is a kernel that spins, with the channel's kernels around it and without; a
figure is the difference for one layer. `counted` and `beside` are a layer whose experts have a slot
each for good, which is only counted: in line, and on a stream of its own beside the stand-in, as
`ktd.sgl.cuda_step` does. `known` is a layer whose experts are all in slots: the
device sees that and raises no flag. `round trip` publishes every row, raises the flag, and waits
for a pool that has nothing to compute. To be reached by it, over a stand-in of 20 us: at most
10 us at one token, 25 us at 32.

The second computes layers of qwen3-30b-a3b's shape (random bf16 weights), every expert on the CPU,
through the channel and by calling the pool. It takes 1.2 GB of host memory a layer.

Every wait on the GPU ends by itself, after 5 s at most.
"""

from __future__ import annotations

import argparse
import faulthandler
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from ctypes import Structure, c_uint64
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch

from ktd.cuda.driver import Module
from ktd.cuda.layer_channel import DeviceLayer, LayerChannel
from ktd.cuda.nvrtc import compile_cubin
from ktd.experts.pool import ExpertPool
from ktd.experts.store import HostStore
from ktd.experts.weights import ExpertWeights, WeightFormat

HIDDEN, INNER, EXPERTS, TOP_K = 2048, 768, 128, 8
BARS = {1: 10.0, 32: 25.0}  # us a layer, by tokens
STAND_INS = (20, 2)  # us; the bars are for the first
RUNS = {1: 60, 32: 12}  # of the second table, by tokens
WARM_UP = 5  # runs that are not counted
ASLEEP = 0.002  # s after which no worker of the pool spins
MOST_SECONDS = 90
SPIN = """
struct Spin { unsigned long long cycles; };
extern "C" __global__ void spin(Spin spin) {
  const long long began = clock64();
  while (clock64() - began < static_cast<long long>(spin.cycles)) {
  }
}
"""


class Spin(Structure):
    """The stand-in's argument."""

    _fields_: ClassVar = [("cycles", c_uint64)]


@dataclass(frozen=True)
class Overhead:
    """Microseconds a layer above the same graph without the channel's kernels."""

    path: str
    tokens: int
    stand_in_us: float
    median_us: float
    p99_us: float


@dataclass(frozen=True)
class Computed:
    """Microseconds a layer whose experts the pool computes."""

    tokens: int
    direct_us: float
    channel_us: float
    channel_p99_us: float
    gb_per_s: float


def percentile(values: list[float], share: float) -> float:
    """The value that this share of the values does not exceed."""
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


class Timer:
    """Times what is enqueued on the current stream, in microseconds, by the GPU's clock."""

    def __init__(self) -> None:
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]

    def __call__(self, work: Callable[[], None]) -> float:
        """Run it once and wait for its end."""
        self._events[0].record()
        work()
        self._events[1].record()
        self._events[1].synchronize()
        return float(self._events[0].elapsed_time(self._events[1])) * 1e3


def captured(work: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """A graph of what ``work`` enqueues, which has run once before."""
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


class StandIn:
    """A kernel that takes about so many microseconds."""

    def __init__(self) -> None:
        major, minor = torch.cuda.get_device_capability()
        cubin, _ = compile_cubin(SPIN, "spin.cu", f"sm_{major}{minor}", headers={})
        self._kernel = Module(cubin).kernel("spin")
        timer = Timer()
        cycles = 200_000
        timer(lambda: self._spin(cycles))
        taken = statistics.median(timer(lambda: self._spin(cycles)) for _ in range(20))
        self._cycles_per_us = cycles / taken

    def _spin(self, cycles: int) -> None:
        self._kernel.launch(1, 32, torch.cuda.current_stream().cuda_stream, Spin(cycles))

    def __call__(self, microseconds: float) -> None:
        """Enqueue it."""
        self._spin(int(microseconds * self._cycles_per_us))


def random_ids(tokens: int) -> torch.Tensor:
    """int32 ``[tokens, TOP_K]`` on the device: each token's experts differ."""
    return torch.rand(tokens, EXPERTS).topk(TOP_K).indices.int().cuda()


@dataclass(frozen=True)
class Batch:
    """One step's tensors on the device: hidden states, weights, output, and each layer's ids."""

    x: torch.Tensor
    weights: torch.Tensor
    out: torch.Tensor
    ids: list[torch.Tensor]

    @classmethod
    def random(cls, tokens: int, layers: int) -> Batch:
        """Random hidden states and routing."""
        x = torch.randn(tokens, HIDDEN).bfloat16().cuda()
        ids = [random_ids(tokens) for _ in range(layers)]
        return cls(x, torch.rand(tokens, TOP_K).cuda(), torch.zeros_like(x), ids)

    def enqueue(
        self,
        channel: LayerChannel,
        layers: list[DeviceLayer],
        between: Callable[[], None] | None = None,
    ) -> None:
        """All layers' kernels, with ``between`` where the slots' experts are computed."""
        for layer, ids in zip(layers, self.ids, strict=True):
            channel.split(layer, self.x, ids, self.weights)
            if between:
                between()
            if layer.handle is not None:
                channel.collect(self.out, add=between is not None)


def repeat(work: Callable[[], None], times: int) -> None:
    """Run it so often."""
    for _ in range(times):
        work()


def count_beside(
    channel: LayerChannel,
    layers: list[DeviceLayer],
    batch: Batch,
    between: Callable[[], None],
    stream: torch.cuda.Stream,
) -> None:
    """All layers' routing is counted on a stream of its own while ``between`` runs."""
    for layer, ids in zip(layers, batch.ids, strict=True):
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            channel.split(layer, batch.x, ids, batch.weights)
        between()
        torch.cuda.current_stream().wait_stream(stream)


def measure_overhead(
    channel: LayerChannel, layer: DeviceLayer, path: str, layers: int, replays: int
) -> list[Overhead]:
    """Rows of the first table: the same graph with and without the channel's kernels, in turn."""
    beside = torch.cuda.Stream()
    rows = []
    stand_in = StandIn()
    timer = Timer()
    channel.begin_step()
    for tokens, us in itertools.product(BARS, STAND_INS):
        batch = Batch.random(tokens, layers)
        work = partial(stand_in, us)
        base = captured(partial(repeat, work, layers))
        same = [layer] * layers
        if path == "beside":
            graph = captured(partial(count_beside, channel, same, batch, work, beside))
        else:
            graph = captured(partial(batch.enqueue, channel, same, work))
        pairs = [(timer(base.replay), timer(graph.replay)) for _ in range(replays + WARM_UP)]
        channel.check()
        alone = statistics.median(pair[0] for pair in pairs[WARM_UP:])
        over = [(pair[1] - alone) / layers for pair in pairs[WARM_UP:]]
        median, p99 = statistics.median(over), percentile(over, 0.99)
        rows.append(Overhead(path, tokens, alone / layers, median, p99))
    channel.end_step()
    return rows


def measure_overheads(threads: int, layers: int, replays: int) -> list[Overhead]:
    """The first table: one channel after the other, for a pool has one mailbox."""
    pool = ExpertPool(threads=threads)
    w13 = torch.zeros(TOP_K, 2 * 64, HIDDEN, dtype=torch.bfloat16)
    w2 = torch.zeros(TOP_K, HIDDEN, 64, dtype=torch.bfloat16)
    handle = pool.add_layer(ExpertWeights(WeightFormat.BF16, w13, w2))
    in_slots = torch.arange(EXPERTS, dtype=torch.int32).cuda()
    layer = DeviceLayer(handle, in_slots, torch.zeros(EXPERTS, 2, dtype=torch.int64).cuda())
    counted = replace(layer, handle=None)
    rows = []
    for path, always in (
        ("counted", False),
        ("beside", False),
        ("known", False),
        ("round trip", True),
    ):
        channel = LayerChannel(
            pool, hidden=HIDDEN, max_tokens=32, top_k=TOP_K, give_up_s=1, limit_s=5, always=always
        )
        which = counted if path in ("counted", "beside") else layer
        rows += measure_overhead(channel, which, path, layers, replays)
        channel.close()
    return rows


def make_layers(pool: ExpertPool, count: int) -> list[int]:
    """Handles of layers of qwen3-30b-a3b's shape, their memory as the engine's store has it."""
    store = HostStore()
    block = (torch.randn(4, INNER * 2 * HIDDEN) / HIDDEN**0.5).bfloat16()
    handles = []
    for _ in range(count):
        w13 = store.allocate((EXPERTS, 2 * INNER, HIDDEN), torch.bfloat16)
        w2 = store.allocate((EXPERTS, HIDDEN, INNER), torch.bfloat16)
        pool.place(w13, parts=2)
        pool.place(w2)
        w13.view(EXPERTS // 4, -1).copy_(block.flatten())
        w2.view(EXPERTS // 8, -1).copy_(block.flatten())
        handles.append(pool.add_layer(ExpertWeights(WeightFormat.BF16, w13, w2)))
    return handles


def call_pool(pool: ExpertPool, handles: list[int], batch: Batch) -> tuple[float, float]:
    """Microseconds a layer and GB/s of the same layers without a GPU between."""
    ids = [chosen.cpu() for chosen in batch.ids]
    x, weights = batch.x.cpu(), batch.weights.cpu()
    out = torch.empty(x.shape)
    tokens = x.shape[0]
    before = pool.bytes_read
    began = time.perf_counter()
    for handle, chosen in zip(handles, ids, strict=True):
        pool.native.forward(
            handle,
            x.data_ptr(),
            chosen.data_ptr(),
            weights.data_ptr(),
            out.data_ptr(),
            tokens,
            TOP_K,
        )
    took = (time.perf_counter() - began) * 1e6
    return took / len(handles), (pool.bytes_read - before) / took / 1e3


def measure_computed(
    pool: ExpertPool, channel: LayerChannel, handles: list[int], tokens: int, runs: int
) -> Computed:
    """A row of the second table: fresh routing for each run, the same for both ways."""
    nowhere = torch.full((EXPERTS,), -1, dtype=torch.int32).cuda()
    counters = torch.zeros(EXPERTS, 2, dtype=torch.int64).cuda()
    layers = [DeviceLayer(handle, nowhere, counters) for handle in handles]
    batch = Batch.random(tokens, len(handles))
    timer = Timer()
    channel.begin_step()
    graph = captured(partial(batch.enqueue, channel, layers))
    direct, channelled = [], []
    for _ in range(runs + WARM_UP):
        for chosen in batch.ids:
            chosen.copy_(random_ids(tokens))
        torch.cuda.synchronize()
        direct.append(call_pool(pool, handles, batch))
        time.sleep(ASLEEP)  # either way the pool's workers sleep at first
        channelled.append(timer(graph.replay) / len(handles))
    channel.end_step()
    channel.check()
    direct, channelled = direct[WARM_UP:], channelled[WARM_UP:]
    return Computed(
        tokens,
        statistics.median(us for us, _ in direct),
        statistics.median(channelled),
        percentile(channelled, 0.99),
        statistics.median(rate for _, rate in direct),
    )


def measure_real(threads: int, layers: int) -> list[Computed]:
    """The second table, by a pool that has seen no other layers."""
    pool = ExpertPool(threads=threads)
    handles = make_layers(pool, layers)
    channel = LayerChannel(pool, hidden=HIDDEN, max_tokens=32, top_k=TOP_K, give_up_s=1, limit_s=5)
    rows = [measure_computed(pool, channel, handles, tokens, runs) for tokens, runs in RUNS.items()]
    channel.close()
    return rows


def print_tables(overheads: list[Overhead], computed: list[Computed]) -> bool:
    """Both tables in Markdown; whether every bar is reached."""
    print("| path | tokens | stand-in, us | median, us | p99, us | bar, us | |")
    print("|---|---|---|---|---|---|---|")
    longest = max(row.stand_in_us for row in overheads)
    missed = False
    for row in overheads:
        bar = verdict = ""
        if row.path == "round trip" and row.stand_in_us > longest / 2:
            bar = f"{BARS[row.tokens]:g}"
            verdict = "reached" if row.median_us <= BARS[row.tokens] else "MISSED"
            missed |= verdict == "MISSED"
        print(
            f"| {row.path} | {row.tokens} | {row.stand_in_us:.2f} | {row.median_us:.2f} | "
            f"{row.p99_us:.2f} | {bar} | {verdict} |"
        )
    if not computed:
        return not missed
    print("\n| tokens | pool called, us | through the channel, us | p99, us | more, us | GB/s |")
    print("|---|---|---|---|---|---|")
    for result in computed:
        print(
            f"| {result.tokens} | {result.direct_us:.1f} | {result.channel_us:.1f} | "
            f"{result.channel_p99_us:.1f} | {result.channel_us - result.direct_us:+.1f} | "
            f"{result.gb_per_s:.0f} |"
        )
    return not missed


def main() -> int:
    """Measure, print, and write the figures; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--layers", type=int, default=48, help="layers of an empty graph")
    parser.add_argument("--replays", type=int, default=300, help="of each graph")
    parser.add_argument("--real-layers", type=int, default=8, help="layers with experts; 0: none")
    parser.add_argument("--json", type=Path, help="where the figures go")
    arguments = parser.parse_args()
    faulthandler.dump_traceback_later(MOST_SECONDS, exit=True)
    if not torch.cuda.is_available():
        print("round_trip.py needs a GPU that torch can use", file=sys.stderr)
        return 2
    pool = ExpertPool()
    isa, threads = pool.isa, max(1, pool.threads - 2)  # two cores for this thread and the driver's
    name = torch.cuda.get_device_name()
    print(f"{name}, torch {torch.__version__}; {isa} kernels, {threads} threads\n")
    overheads = measure_overheads(threads, arguments.layers, arguments.replays)
    computed = measure_real(threads, arguments.real_layers) if arguments.real_layers else []
    reached = print_tables(overheads, computed)
    if arguments.json:
        figures = {
            "gpu": name,
            "torch": torch.__version__,
            "isa": isa,
            "threads": threads,
            "overhead": [asdict(row) for row in overheads],
            "computed": [asdict(row) for row in computed],
        }
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
