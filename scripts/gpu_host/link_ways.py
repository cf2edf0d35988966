"""How a kernel gets rows over the link: each way to read an answer, each way to write activations.

    engine.sh run python3 scripts/gpu_host/link_ways.py [--json FILE]

The channel's kernels read 256 KiB of float32 and write 128 KiB of bf16 for 32 tokens of 2,048
columns (scripts/gpu_host/round_trip.py). A figure is what one kernel of a graph takes beyond an
empty one of the same grid; every kernel of it has memory of its own. A few seconds on a GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from ctypes import Structure, c_uint32, c_uint64
from pathlib import Path
from typing import ClassVar

import torch

from ktd.cuda.driver import Kernel, Module, device_address
from ktd.cuda.nvrtc import compile_cubin

SIZES = {"read": 256 << 10, "write": 128 << 10}
BLOCKS = (8, 16, 32, 64, 128)
KERNELS, REPLAYS, THREADS = 64, 40, 512
MOST_SHARED = 32 << 10  # bytes of a block
SOURCE = """
struct Work { uint4* host; uint4* device; unsigned int vectors; };
typedef unsigned long long u64;

__device__ inline unsigned int Shared(const void* at) {
  return static_cast<unsigned int>(__cvta_generic_to_shared(at));
}

#define READ(name, load)                                                                     \\
  extern "C" __global__ void __launch_bounds__(512) read_##name(Work work) {                 \\
    const unsigned int step = gridDim.x * blockDim.x;                                        \\
    uint4 got[8];                                                                            \\
    const unsigned int first = blockIdx.x * blockDim.x + threadIdx.x;                        \\
    _Pragma("unroll") for (unsigned int i = 0; i < 8; ++i) {                                 \\
      const unsigned int at = first + i * step;                                              \\
      if (at < work.vectors)                                                                 \\
        asm volatile(load " {%0, %1, %2, %3}, [%4];"                                         \\
                     : "=r"(got[i].x), "=r"(got[i].y), "=r"(got[i].z), "=r"(got[i].w)        \\
                     : "l"(work.host + at) : "memory");                                      \\
    }                                                                                        \\
    _Pragma("unroll") for (unsigned int i = 0; i < 8; ++i) {                                 \\
      const unsigned int at = first + i * step;                                              \\
      if (at < work.vectors) work.device[at] = got[i];                                       \\
    }                                                                                        \\
  }
READ(relaxed, "ld.relaxed.sys.global.v4.u32")
READ(weak, "ld.global.v4.u32")
READ(nc, "ld.global.nc.L1::no_allocate.v4.u32")

// The copy engine of a processor fetches a block's part into shared memory.
extern "C" __global__ void __launch_bounds__(512) read_bulk(Work work) {
  __shared__ __align__(128) uint4 part[2048];
  __shared__ __align__(8) u64 arrived;
  const unsigned int count = work.vectors / gridDim.x, first = blockIdx.x * count;
  if (threadIdx.x == 0) {
    asm volatile("mbarrier.init.shared.b64 [%0], 1;" : : "r"(Shared(&arrived)) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" : : : "memory");
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;"
                 : : "r"(Shared(&arrived)), "r"(16 * count) : "memory");
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1], %2, [%3];"
                 : : "r"(Shared(part)), "l"(work.host + first), "r"(16 * count),
                     "r"(Shared(&arrived)) : "memory");
  }
  __syncthreads();
  unsigned int done = 0;
  while (done == 0) {
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], 0; "
                 "selp.u32 %0, 1, 0, p; }" : "=r"(done) : "r"(Shared(&arrived)) : "memory");
  }
  for (unsigned int i = threadIdx.x; i < count; i += blockDim.x) work.device[first + i] = part[i];
}

extern "C" __global__ void __launch_bounds__(512) write_stores(Work work) {
  const unsigned int step = gridDim.x * blockDim.x;
  for (unsigned int at = blockIdx.x * blockDim.x + threadIdx.x; at < work.vectors; at += step) {
    work.host[at] = work.device[at];
  }
  __syncthreads();
  if (threadIdx.x == 0) __threadfence_system();
}

extern "C" __global__ void __launch_bounds__(512) write_bulk(Work work) {
  __shared__ __align__(128) uint4 part[2048];
  const unsigned int count = work.vectors / gridDim.x, first = blockIdx.x * count;
  for (unsigned int i = threadIdx.x; i < count; i += blockDim.x) part[i] = work.device[first + i];
  asm volatile("fence.proxy.async.shared::cta;" : : : "memory");
  __syncthreads();
  if (threadIdx.x != 0) return;
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;"
               : : "l"(work.host + first), "r"(Shared(part)), "r"(16 * count) : "memory");
  asm volatile("cp.async.bulk.commit_group;" : : : "memory");
  asm volatile("cp.async.bulk.wait_group 0;" : : : "memory");
  __threadfence_system();
}

extern "C" __global__ void __launch_bounds__(512) nothing(Work work) {
  if (threadIdx.x == 0 && work.vectors == 0) __threadfence_system();
}
"""
WAYS = ("read_relaxed", "read_weak", "read_nc", "read_bulk", "write_stores", "write_bulk")


class Work(Structure):
    """What a kernel is given."""

    _fields_: ClassVar = [("host", c_uint64), ("device", c_uint64), ("vectors", c_uint32)]


def microseconds(work: Callable[[int], None]) -> list[float]:
    """Of one of KERNELS kernels in a graph, by replay."""
    work(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for number in range(KERNELS):
            work(number)
    found = []
    for _ in range(REPLAYS):
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        graph.replay()
        after.record()
        after.synchronize()
        found.append(before.elapsed_time(after) * 1e3 / KERNELS)
    return found[REPLAYS // 4 :]


def measure(kernel: Kernel, blocks: int, size: int, host: int, device: int) -> list[float]:
    """Of a way, or of the empty kernel."""

    def launch(number: int) -> None:
        kernel.launch(
            blocks,
            THREADS,
            torch.cuda.current_stream().cuda_stream,
            Work(host + number * size, device + number * size, size // 16),
        )

    return microseconds(launch)


def main() -> int:
    """Prints a table; 1 if what arrived is not what was sent."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    major, minor = torch.cuda.get_device_capability()
    cubin, _ = compile_cubin(SOURCE, "link_ways.cu", f"sm_{major}{minor}", headers={})
    module = Module(cubin)
    total = KERNELS * max(SIZES.values())
    random = torch.randint(0, 256, (total,), dtype=torch.uint8)
    host, device = random.pin_memory(), torch.zeros(total, dtype=torch.uint8, device="cuda")
    where = device_address(host.data_ptr())
    print(f"{torch.cuda.get_device_name()}; us a kernel beyond an empty one, median (lowest); GB/s")
    found: dict[str, dict[int, list[float]]] = {}
    for way in WAYS:
        what = way.partition("_")[0]
        size = SIZES[what]
        for blocks in BLOCKS:
            if size // blocks > MOST_SHARED and "bulk" in way:
                continue
            (device if what == "read" else host).zero_()
            (host if what == "read" else device).copy_(random)
            empty = statistics.median(
                measure(module.kernel("nothing"), blocks, size, where, device.data_ptr())
            )
            times = [
                took - empty
                for took in measure(module.kernel(way), blocks, size, where, device.data_ptr())
            ]
            if not torch.equal(host[: KERNELS * size], device[: KERNELS * size].cpu()):
                print(f"{way}, {blocks} blocks: what arrived is not what was sent")
                return 1
            middle = statistics.median(times)
            rate = size / middle / 1e3
            print(f"{way:13} {blocks:4} blocks {middle:6.2f} ({min(times):.2f}) {rate:6.1f}")
            found.setdefault(way, {})[blocks] = times
    if args.json:
        args.json.write_text(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
