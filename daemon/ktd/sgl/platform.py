"""A SGLang platform for hosts without a GPU.

SGLang's own CPU mode needs a build of its kernel package that no registry carries. Its platform
plugin seam (``sglang.srt.platforms``, selected by ``SGLANG_PLATFORM=ktd``) lets the unmodified
engine run through its torch-native paths instead: gloo between ranks, torch's attention, no graphs.
"""

from __future__ import annotations

import os
import sys
from typing import Any

PLATFORM_NAME = "ktd"
_GPU_KERNELS = "flashinfer"


def activate() -> str | None:
    """Entry point: dotted name of the platform class, or None when another platform is meant.

    SGLang imports every installed platform plugin when none is selected; this one then steps back,
    so that installing ktd changes nothing for an engine that ktd did not start.
    """
    if os.environ.get("SGLANG_PLATFORM") != PLATFORM_NAME:
        return None
    _leave_out_gpu_kernels()
    return "ktd.sgl.cpu_platform.CpuPlatform"


def _leave_out_gpu_kernels() -> None:
    """Makes FlashInfer, whose kernels are for GPUs alone, look as if it were not installed.

    SGLang imports it wherever it is, and goes on without where it is not. On a host without a GPU
    that import took 3.7 of the 17 seconds of CPU time that each of an engine's three processes
    spends on imports.
    """
    modules: dict[str, Any] = sys.modules
    modules.setdefault(_GPU_KERNELS, None)


def environment(device: str) -> dict[str, str]:
    """Variables that make SGLang load ktd's plugins, and no others, for ``"cpu"`` or ``"cuda"``."""
    variables: dict[str, Any] = {"SGLANG_PLUGINS": "ktd"}
    if device == "cpu":
        variables["SGLANG_PLATFORM"] = PLATFORM_NAME
    return variables
