"""Holds a GPU's memory, so that an engine starts beside it as on a smaller card.

    engine.sh run python3 scripts/gpu_host/hold_memory.py GIB FILE

Takes all but GIB of what is free on the first GPU it sees (CUDA_VISIBLE_DEVICES), says what is
left, and gives it back when there is FILE, or when it is interrupted. SGLang's
--mem-fraction-static is a share of the whole card: an engine beside this one needs a larger one.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

_GIB = 1 << 30


def main() -> int:
    """Takes it, waits; 1 if less is free already."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("gib", type=float, metavar="GIB")
    parser.add_argument("file", type=Path, metavar="FILE")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("hold_memory.py needs a GPU that torch can use", file=sys.stderr)
        return 2
    torch.zeros(1, device="cuda")  # the context takes memory too
    free, total = torch.cuda.mem_get_info()
    taken = int(free - args.gib * _GIB)
    if taken <= 0:
        print(f"{free / _GIB:.2f} GiB are free, less than {args.gib:g}", file=sys.stderr)
        return 1
    held = torch.empty(taken, dtype=torch.uint8, device="cuda")
    free, _ = torch.cuda.mem_get_info()
    print(f"{free / _GIB:.2f} GiB free of {total / _GIB:.2f}", flush=True)
    while not args.file.exists():
        time.sleep(0.3)
    del held
    return 0


if __name__ == "__main__":
    sys.exit(main())
