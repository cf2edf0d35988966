"""How fast experts get from host memory into slots, by each way of copying a swap's tensors.

    engine.sh run python3 scripts/gpu_host/copies.py [--json FILE]

Tensors of an expert: those of Qwen3-Next in FP8, of Qwen3-30B-A3B in BF16, and, beside them, one
piece of memory as large. Ways: as a swap copies (csrc/slot_copies.h) on one stream and on several
in turn, an expert's tensors after each other, or all experts' tensors of a kind; the driver's call
for a batch of copies (CUDA 12.8); and pieces of at most 16 KiB by a kernel that reads the host's
memory, the others on streams. Half a minute on a GPU, 4 GiB of host memory.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import sys
import time
from collections.abc import Callable
from ctypes import Structure, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from ktd.cuda.driver import Kernel, Module, device_address
from ktd.cuda.nvrtc import compile_cubin
from ktd.experts import _native

RUNS = 7
TOTAL = 2 << 30
MIB = 1 << 20
SMALL = 16 << 10
EXPERTS = {
    "qwen3-next-80b-a3b, FP8 by blocks": (2 * MIB, MIB, 512, 256),
    "qwen3-30b-a3b, BF16": (6 * MIB, 3 * MIB),
    "in one piece": (1 << 30,),
}
SOURCE = """
struct Small { const unsigned long long* rows; };  // [blocks, 3]: destination, source, bytes
extern "C" __global__ void __launch_bounds__(128) copy_small(Small small) {
  const unsigned long long* row = small.rows + 3 * blockIdx.x;
  uint4* to = reinterpret_cast<uint4*>(row[0]);
  const uint4* from = reinterpret_cast<const uint4*>(row[1]);
  for (unsigned int i = threadIdx.x; i < row[2] / 16; i += blockDim.x) to[i] = from[i];
}
"""

Copy = Callable[[np.ndarray[Any, Any]], None]


class Small(Structure):
    """The kernel's argument."""

    _fields_: ClassVar = [("rows", c_uint64)]


class Attributes(Structure):
    """``CUmemcpyAttributes``: order of access to the source, where either side is, flags."""

    _fields_: ClassVar = [
        ("order", c_int),
        ("source", c_int * 2),
        ("destination", c_int * 2),
        ("flags", c_uint32),
    ]


def places(parts: tuple[int, ...], host: int, slots: int, *, by_kind: bool) -> np.ndarray[Any, Any]:
    """int64 ``[copies, 3]``: destination, source and bytes, of as many experts as there is room."""
    size = sum(parts)
    starts = np.concatenate([[0], np.cumsum(parts)[:-1]])
    at = np.arange(TOTAL // size, dtype=np.int64)[:, None] * size + starts
    sizes = np.broadcast_to(np.array(parts, np.int64), at.shape)
    if by_kind:
        at, sizes = at.T, sizes.T
    flat = at.reshape(-1)
    return np.stack([slots + flat, host + flat, sizes.reshape(-1)], axis=1)


def in_turn(rows: np.ndarray[Any, Any], streams: list[torch.cuda.Stream]) -> None:
    """As a swap copies: enqueued and joined on the first stream."""
    copies = _native.SlotCopies(
        rows,
        1 << 30 if int(rows[:, 2].max()) > TOTAL // 4 else 4 * MIB,
        streams=[stream.cuda_stream for stream in streams],
        most_ahead=512 * MIB,
    )
    while not copies.done:
        copies.run(1.0)
    copies.finish()


def by_streams(count: int) -> Copy:
    """On so many streams in turn."""
    streams = [torch.cuda.Stream() for _ in range(count)]

    def copy(rows: np.ndarray[Any, Any]) -> None:
        in_turn(rows, streams)
        streams[0].synchronize()

    return copy


def by_batches() -> Copy | None:
    """In calls of 256 copies; None: the driver has no such call."""
    driver = ctypes.CDLL("libcuda.so.1")
    if not hasattr(driver, "cuMemcpyBatchAsync"):
        return None
    call = driver.cuMemcpyBatchAsync
    call.argtypes = [c_void_p] * 3 + [c_size_t] + [c_void_p] * 2 + [c_size_t] + [c_void_p] * 2
    stream = torch.cuda.Stream()
    # The source is host memory that nobody changes: any order will do.
    attributes, first, failed = Attributes(order=3), c_size_t(0), c_size_t(0)

    def copy(rows: np.ndarray[Any, Any]) -> None:
        columns = np.ascontiguousarray(rows.T.astype(np.uint64))
        for start in range(0, rows.shape[0], 256):
            part = [np.ascontiguousarray(column[start : start + 256]) for column in columns]
            status = call(
                *(column.ctypes.data for column in part),
                len(part[0]),
                ctypes.addressof(attributes),
                ctypes.addressof(first),
                1,
                ctypes.addressof(failed),
                stream.cuda_stream,
            )
            if status:
                raise RuntimeError(f"cuMemcpyBatchAsync says {status}, copy {failed.value}")
        stream.synchronize()

    return copy


def with_kernel(kernel: Kernel, shift: int, count: int) -> Copy:
    """Small pieces by a kernel, the others on streams; ``shift``: the host's address there."""
    streams = [torch.cuda.Stream() for _ in range(count)]

    def copy(rows: np.ndarray[Any, Any]) -> None:
        small = rows[:, 2] <= SMALL
        few = rows[small].copy()
        few[:, 1] += shift
        listed = torch.from_numpy(few).pin_memory()
        if len(few):
            where = Small(device_address(listed.data_ptr()))
            kernel.launch(len(few), 128, streams[-1].cuda_stream, where)
        in_turn(rows[~small], streams)
        for stream in streams:
            stream.synchronize()

    return copy


def ways(host: torch.Tensor) -> dict[str, tuple[bool, Copy]]:
    """By name: whether tensors of a kind follow each other, and how they are copied."""
    torch.cuda.init()
    major, minor = torch.cuda.get_device_capability()
    cubin, _ = compile_cubin(SOURCE, "copies.cu", f"sm_{major}{minor}", headers={})
    kernel = Module(cubin).kernel("copy_small")
    found: dict[str, tuple[bool, Copy]] = {
        f"{count} streams": (False, by_streams(count)) for count in (1, 2, 4, 8)
    }
    found["4 streams, by kind"] = True, by_streams(4)
    if (batches := by_batches()) is not None:
        found["the driver's batches"] = False, batches
    shift = device_address(host.data_ptr()) - host.data_ptr()
    for count in (2, 4):
        found[f"small by a kernel, {count} streams"] = False, with_kernel(kernel, shift, count)
    return found


def main() -> int:
    """Prints a table; 1 if what arrived is not what was sent."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    slots = torch.zeros(TOTAL, dtype=torch.uint8, device="cuda")
    host = torch.randint(0, 256, (TOTAL,), dtype=torch.uint8).pin_memory()
    print(f"{torch.cuda.get_device_name()}; GB/s, median of {RUNS} (lowest to highest)")
    found = {}
    for name, parts in EXPERTS.items():
        copied = TOTAL // sum(parts) * sum(parts)
        for way, (by_kind, copy) in ways(host).items():
            rows = places(parts, host.data_ptr(), slots.data_ptr(), by_kind=by_kind)
            rates = []
            slots.zero_()
            for _ in range(RUNS + 1):
                torch.cuda.synchronize()
                began = time.perf_counter()
                copy(rows)
                rates.append(copied / (time.perf_counter() - began) / 1e9)
            rates = rates[1:]
            if not torch.equal(slots[:copied].cpu(), host[:copied]):
                print(f"{name}, {way}: what arrived is not what was sent")
                return 1
            found[f"{name}, {way}"] = rates
            low, high = min(rates), max(rates)
            print(f"{name:36} {way:28} {statistics.median(rates):5.1f} ({low:.1f}-{high:.1f})")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
