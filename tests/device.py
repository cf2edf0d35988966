"""Where tests run their engines."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

VARIABLE = "KTD_TEST_DEVICE"


def gpus() -> int:
    """NVIDIA GPUs of this host."""
    return sum(path.name[len("nvidia") :].isdigit() for path in Path("/dev").glob("nvidia*"))


def device() -> str:
    """``"cuda"`` or ``"cpu"``: what ``KTD_TEST_DEVICE`` says, or else what the host has."""
    return os.environ.get(VARIABLE) or ("cuda" if gpus() else "cpu")


def at_full_precision(model: Any) -> Any:
    """A model of Transformers on that device, where float32 is float32: GPUs may shorten it."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return model.to(device())


def on_gpu() -> bool:
    """Whether engines of tests have their slots on a GPU."""
    return device() == "cuda"
