"""Memory of the host's GPUs, as nvidia-smi says it: no process of ours opens the device."""

from __future__ import annotations

import os
import subprocess

_MIB = 1 << 20
_COMMAND = "nvidia-smi"
_VISIBLE = "CUDA_VISIBLE_DEVICES"


def device_bytes(ranks: int, *, free: bool, command: str = _COMMAND) -> int:
    """Bytes of the first ``ranks`` GPUs, ``free`` ones or all; 0 if nvidia-smi does not say.

    As ranks share a model evenly, the GPU with the least decides for all. Where
    ``CUDA_VISIBLE_DEVICES`` names GPUs, the first of those count.
    """
    what = "memory.free" if free else "memory.total"
    arguments = [command, f"--query-gpu={what}", "--format=csv,noheader,nounits"]
    if visible := os.environ.get(_VISIBLE):
        arguments += ("-i", ",".join(name.strip() for name in visible.split(",")[:ranks]))
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=10, check=True)
        sizes = [int(line) for line in done.stdout.split()]
    except (OSError, subprocess.SubprocessError, ValueError):
        return 0
    return min(sizes[:ranks]) * ranks * _MIB if len(sizes) >= ranks else 0
