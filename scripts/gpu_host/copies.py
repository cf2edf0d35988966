"""How fast experts get from host memory into slots, by the streams that their copies take in turn.

    engine.sh run python3 scripts/gpu_host/copies.py [--json FILE]

Copies as a swap makes them (csrc/slot_copies.h), of the tensors of an expert: those of Qwen3-Next
in FP8, of Qwen3-30B-A3B in BF16, and, beside them, one piece of memory as large. Ten seconds on a
GPU, 4 GiB of host memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

from ktd.experts import _native

STREAMS = (1, 2, 3, 4, 6, 8)
RUNS = 7
TOTAL = 2 << 30
MIB = 1 << 20
EXPERTS = {
    "qwen3-next-80b-a3b, FP8 by blocks": (2 * MIB, MIB, 512, 256),
    "qwen3-30b-a3b, BF16": (6 * MIB, 3 * MIB),
    "in one piece": (1 << 30,),
}


def rate(parts: tuple[int, ...], count: int, host: torch.Tensor, slots: torch.Tensor) -> float:
    """Bytes per second of copying as many experts as there is room for, on ``count`` streams."""
    size = sum(parts)
    experts = np.arange(TOTAL // size, dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(parts)[:-1]])
    places = (experts[:, None] * size + starts).reshape(-1, 1)
    rows = np.concatenate(
        [
            slots.data_ptr() + places,
            host.data_ptr() + places,
            np.tile(np.array(parts, np.int64), len(experts)).reshape(-1, 1),
        ],
        axis=1,
    )
    streams = [torch.cuda.Stream() for _ in range(count)]
    copies = _native.SlotCopies(
        rows,
        4 * MIB if size < TOTAL // 4 else size,
        streams=[stream.cuda_stream for stream in streams],
        most_ahead=512 * MIB,
    )
    torch.cuda.synchronize()
    began = time.perf_counter()
    while not copies.done:
        copies.run(1.0)
    copies.finish()
    streams[0].synchronize()
    return int(rows[:, 2].sum()) / (time.perf_counter() - began)


def main() -> int:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    host = torch.randint(0, 256, (TOTAL,), dtype=torch.uint8).pin_memory()
    slots = torch.zeros(TOTAL, dtype=torch.uint8, device="cuda")
    print(f"{torch.cuda.get_device_name()}; GB/s, median of {RUNS} (lowest to highest)")
    found = {}
    for name, parts in EXPERTS.items():
        for count in STREAMS:
            rate(parts, count, host, slots)
            rates = [rate(parts, count, host, slots) / 1e9 for _ in range(RUNS)]
            found[f"{name}, {count} streams"] = rates
            low, high = min(rates), max(rates)
            print(
                f"{name:36} {count} streams  {statistics.median(rates):5.1f} ({low:.1f}-{high:.1f})"
            )
        if not torch.equal(slots[: host.numel() // 2].cpu(), host[: host.numel() // 2]):
            print(f"{name}: what arrived is not what was sent")
            return 1
        slots.zero_()
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
