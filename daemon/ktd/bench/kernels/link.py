"""How fast a GPU reads the host's memory: page-locked memory, the driver's own copies.

Run as a program it prints bytes per second, or nothing without a GPU; so that whoever asks need not
import torch, and no context of it stays on the GPU.
"""

from __future__ import annotations

import sys
import time

import torch

_BYTES = 256 << 20
_COPIES = 8
_ROUNDS = 5


def host_to_device() -> float | None:
    """Bytes per second, the best of a few rounds; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    source = torch.ones(_BYTES, dtype=torch.uint8).pin_memory()
    target = torch.empty(_BYTES, dtype=torch.uint8, device="cuda")
    best = 0.0
    for _ in range(_ROUNDS):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(_COPIES):
            target.copy_(source, non_blocking=True)
        torch.cuda.synchronize()
        best = max(best, _COPIES * _BYTES / (time.perf_counter() - began))
    return best


if __name__ == "__main__":
    found = host_to_device()
    if found is not None:
        sys.stdout.write(f"{found:.0f}\n")
