"""Where tests run their engines."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "KTD_TEST_DEVICE"


def gpus() -> int:
    """NVIDIA GPUs of this host."""
    return sum(path.name[len("nvidia") :].isdigit() for path in Path("/dev").glob("nvidia*"))


def device() -> str:
    """``"cuda"`` or ``"cpu"``: what ``KTD_TEST_DEVICE`` says, or else what the host has."""
    return os.environ.get(VARIABLE) or ("cuda" if gpus() else "cpu")


def on_gpu() -> bool:
    """Whether engines of tests have their slots on a GPU."""
    return device() == "cuda"
