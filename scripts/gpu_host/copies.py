"""How fast experts get from host memory into slots, by each way of copying a swap's tensors.

    engine.sh run python3 scripts/gpu_host/copies.py [--json FILE]

Tensors of an expert: those of Qwen3-Next in FP8, of Qwen3-30B-A3B in BF16, and, beside them, one
piece of memory as large. Ways (csrc/slot_copies.h): the driver is given several copies at a time,
as a swap does; one at a time, on one stream and on several in turn; and that with the tensors of a
kind behind each other, instead of those of an expert. Half a minute on a GPU, 4 GiB of host memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ktd.experts import _native

RUNS = 7
TOTAL = 2 << 30
MIB = 1 << 20
EXPERTS = {
    "qwen3-next-80b-a3b, FP8 by blocks": (2 * MIB, MIB, 512, 256),
    "qwen3-30b-a3b, BF16": (6 * MIB, 3 * MIB),
    "in one piece": (1 << 30,),
}
# Copies at a time, streams, and whether tensors of a kind follow each other.
WAYS = {
    "several at a time": (64, 1, False),
    "512 at a time": (512, 1, False),
    **{f"one at a time, {count} streams": (1, count, False) for count in (1, 2, 4, 8)},
    "one at a time, 4 streams, by kind": (1, 4, True),
}


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


def copy(rows: np.ndarray[Any, Any], streams: list[torch.cuda.Stream], together: int) -> None:
    """As a swap copies; returns when all has arrived."""
    copies = _native.SlotCopies(
        rows,
        1 << 30 if int(rows[:, 2].max()) > TOTAL // 4 else 4 * MIB,
        streams=[stream.cuda_stream for stream in streams],
        most_ahead=512 * MIB,
        together=together,
    )
    while not copies.done:
        copies.run(1.0)
    copies.finish()
    streams[0].synchronize()


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
        for way, (together, count, by_kind) in WAYS.items():
            rows = places(parts, host.data_ptr(), slots.data_ptr(), by_kind=by_kind)
            streams = [torch.cuda.Stream() for _ in range(count)]
            rates = []
            slots.zero_()
            for _ in range(RUNS + 1):
                torch.cuda.synchronize()
                began = time.perf_counter()
                copy(rows, streams, together)
                rates.append(copied / (time.perf_counter() - began) / 1e9)
            rates = rates[1:]
            if not torch.equal(slots[:copied].cpu(), host[:copied]):
                print(f"{name}, {way}: what arrived is not what was sent")
                return 1
            found[f"{name}, {way}"] = rates
            low, high = min(rates), max(rates)
            print(f"{name:36} {way:36} {statistics.median(rates):5.1f} ({low:.1f}-{high:.1f})")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
