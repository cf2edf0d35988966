"""The kernels' sources, compiled for a device; the channel's, loaded into it."""

from __future__ import annotations

from functools import cache
from importlib import resources

from ktd.cuda.arguments import sizes
from ktd.cuda.driver import Kernel, Module
from ktd.cuda.nvrtc import compile_cubin

_OF_CHANNELS = ("split.cu", "collect.cu")
REARRANGE = "rearrange.cu"
SOURCES = (*_OF_CHANNELS, REARRANGE)


def compile_source(name: str, arch: str) -> tuple[bytes, str]:
    """Compile one of ``SOURCES`` for ``arch`` (``"sm_90"``); needs no GPU.

    Returns:
        The cubin, and the compiler's warnings.

    Raises:
        CudaFailed: It does not compile, or there is no compiler.
    """
    folder = resources.files("ktd.cuda") / "kernels"
    headers = {file.name: file.read_text() for file in folder.iterdir() if file.name.endswith(".h")}
    source = (folder / name).read_text()
    return compile_cubin(source, name, arch, headers=headers, options=sizes())


@cache
def cubin_of(name: str, arch: str) -> bytes:
    """As :func:`compile_source`, once for each."""
    return compile_source(name, arch)[0]


class KernelSet:
    """A channel's kernels on the current device.

    Args:
        arch: The device's architecture.

    Raises:
        CudaFailed: They do not compile or load.
    """

    def __init__(self, arch: str) -> None:
        split, collect = (Module(cubin_of(name, arch)) for name in _OF_CHANNELS)
        self.split_int32: Kernel = split.kernel("ktd_split_int32")
        self.split_int64: Kernel = split.kernel("ktd_split_int64")
        self.collect: Kernel = collect.kernel("ktd_collect")
        self.wait: Kernel = collect.kernel("ktd_await")
        self.add: Kernel = collect.kernel("ktd_add")
