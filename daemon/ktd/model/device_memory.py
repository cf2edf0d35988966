"""Memory of the host's GPUs, as nvidia-smi says it: no process of ours opens the device."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

_MIB = 1 << 20
_COMMAND = "nvidia-smi"
_VISIBLE = "CUDA_VISIBLE_DEVICES"


def device_bytes(gpus: Sequence[int], *, free: bool, command: str = _COMMAND) -> int:
    """Bytes of some GPUs together, ``free`` ones or all; 0 if nvidia-smi does not say.

    As ranks share a model evenly, the GPU with the least decides for all.

    Args:
        gpus: Of those that ``CUDA_VISIBLE_DEVICES`` names, or else of all: the ordinal of each
            rank's.
        free: What is free now.
        command: nvidia-smi.
    """
    what = "memory.free" if free else "memory.total"
    arguments = [command, f"--query-gpu={what}", "--format=csv,noheader,nounits"]
    places = list(gpus)
    try:
        if visible := os.environ.get(_VISIBLE):
            names = [name.strip() for name in visible.split(",")]
            arguments += ("-i", ",".join(names[gpu] for gpu in gpus))
            places = list(range(len(places)))
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=10, check=True)
        sizes = [int(line) for line in done.stdout.split()]
        return min(sizes[place] for place in places) * len(places) * _MIB
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return 0
