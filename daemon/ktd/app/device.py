"""Where slots live."""

from __future__ import annotations

import os

from ktd.errors import ModelUnsupported
from ktd.model.device_memory import device_bytes

DEVICES = ("auto", "cpu", "cuda")


def detect_device(wanted: str) -> str:
    """Where the engine runs: ``"cuda"`` if that is asked for or this host has a GPU, or ``"cpu"``.

    Raises:
        ModelUnsupported: A GPU is asked for that nobody sees, or something else is.
    """
    if wanted not in DEVICES:
        raise ModelUnsupported(f"--device {wanted} is none of {', '.join(DEVICES)}.")
    if wanted == "cpu":
        return "cpu"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") == ""
    found = not hidden and device_bytes([0], free=False) > 0
    if found:
        return "cuda"
    if wanted == "cuda":
        why = "CUDA_VISIBLE_DEVICES hides them all" if hidden else "nvidia-smi shows none"
        raise ModelUnsupported(
            f"--device cuda needs an NVIDIA GPU, and {why}; leave it out, and slots are kept in "
            "host memory."
        )
    return "cpu"
