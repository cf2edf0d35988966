"""GPUs and their driver, asked through NVML, which every NVIDIA driver carries.

Functions and struct: https://docs.nvidia.com/deploy/nvml-api/
"""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ktd.cli.checks.finding import Finding, Level
from ktd.cli.quantities import bytes_text

_LIBRARY = "libnvidia-ml.so.1"
# How the findings about devices are called, before their number.
GPU = "GPU "
_TEXT_SIZE = 96
_TOOL = "nvidia-smi"
_COMPILER = "CUDA compiler"
# Where SGLang's kernel builds look behind the variables and PATH (tvm_ffi/cpp/extension.py).
_TOOLKIT = Path("/usr/local/cuda")
# bf16 on tensor cores, which SGLang's kernels and ktd's choice of types take for granted.
_OLDEST = (8, 0)


class _Memory(ctypes.Structure):
    """``nvmlMemory_t``, bytes."""

    _fields_ = (
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device; ``capability`` is CUDA's, for example ``9.0``."""

    index: int
    name: str
    total_bytes: int
    free_bytes: int
    capability: str


class NvmlError(Exception):
    """The driver's library refused a call."""


def gpu_findings() -> list[Finding]:
    """The driver, what asks it, and each GPU; or one finding that says why there is none."""
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError:
        text = "no NVIDIA driver: slots are host memory, and the model runs on the CPU"
        return [Finding("gpu", "driver", Level.NOTE, text, data={"driver": None, "gpus": []})]
    try:
        with _started(library):
            driver, gpus = _driver(library), list(_gpus(library))
    except NvmlError as error:
        advice = "see 'nvidia-smi'; without a working driver the model runs on the CPU"
        return [Finding("gpu", "driver", Level.WARNING, str(error), advice)]
    findings = [Finding("gpu", "driver", Level.OK, driver, data={"driver": driver})]
    if not gpus:
        text = "the driver sees no GPU: slots are host memory, and the model runs on the CPU"
        return [*findings, Finding("gpu", "devices", Level.NOTE, text)]
    return [*findings, *_tool(), *(_device(gpu) for gpu in gpus), _compiler()]


def _tool() -> list[Finding]:
    if shutil.which(_TOOL):
        return []
    text = f"{_TOOL} is not in PATH, and 'ktd serve' asks it for GPUs and their free memory"
    advice = "put it there, it comes with the driver; without it the model runs on the CPU"
    return [Finding("gpu", _TOOL, Level.WARNING, text, advice)]


def _compiler() -> Finding:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if not home and (found := shutil.which("nvcc")):
        home = str(Path(found).parent.parent)
    path = (Path(home) if home else _TOOLKIT) / "bin/nvcc"
    if path.is_file():
        return Finding("gpu", _COMPILER, Level.OK, str(path), data={"nvcc": str(path)})
    text = (
        f"there is no {path}: SGLang compiles some kernels when they are first used, those of 4-bit"
        " experts on its Marlin runner among them, and ends where it cannot"
    )
    advice = (
        "install the CUDA toolkit of torch's CUDA version, or set CUDA_HOME to where it is, for the"
        " service too; not needed where ~/.cache/tvm-ffi has them already"
    )
    return Finding("gpu", _COMPILER, Level.WARNING, text, advice, {"nvcc": None})


def _device(gpu: Gpu) -> Finding:
    text = (
        f"{gpu.name}, {bytes_text(gpu.free_bytes)} of {bytes_text(gpu.total_bytes)} free, "
        f"compute capability {gpu.capability}"
    )
    data = {name: getattr(gpu, name) for name in Gpu.__slots__}
    if tuple(map(int, gpu.capability.split("."))) < _OLDEST:
        advice = "ktd computes in bf16, which needs 8.0 or newer: serve with --device cpu"
        return Finding("gpu", f"{GPU}{gpu.index}", Level.WARNING, text, advice, data)
    text += ": 'ktd serve' runs the model here, with the slots"
    return Finding("gpu", f"{GPU}{gpu.index}", Level.OK, text, data=data)


@contextmanager
def _started(library: ctypes.CDLL) -> Iterator[None]:
    _call(library, "nvmlInit_v2")
    try:
        yield
    finally:
        library.nvmlShutdown()


def _driver(library: ctypes.CDLL) -> str:
    text = ctypes.create_string_buffer(_TEXT_SIZE)
    _call(library, "nvmlSystemGetDriverVersion", text, _TEXT_SIZE)
    return text.value.decode()


def _gpus(library: ctypes.CDLL) -> Iterator[Gpu]:
    count = ctypes.c_uint()
    _call(library, "nvmlDeviceGetCount_v2", ctypes.byref(count))
    for index in range(count.value):
        handle = ctypes.c_void_p()
        _call(library, "nvmlDeviceGetHandleByIndex_v2", index, ctypes.byref(handle))
        name = ctypes.create_string_buffer(_TEXT_SIZE)
        _call(library, "nvmlDeviceGetName", handle, name, _TEXT_SIZE)
        memory = _Memory()
        _call(library, "nvmlDeviceGetMemoryInfo", handle, ctypes.byref(memory))
        major, minor = ctypes.c_int(), ctypes.c_int()
        _call(
            library,
            "nvmlDeviceGetCudaComputeCapability",
            handle,
            ctypes.byref(major),
            ctypes.byref(minor),
        )
        capability = f"{major.value}.{minor.value}"
        yield Gpu(index, name.value.decode(), memory.total, memory.free, capability)


def _call(library: ctypes.CDLL, function: str, *arguments: object) -> None:
    try:
        code = getattr(library, function)(*arguments)
    except AttributeError as error:
        raise NvmlError(f"{_LIBRARY} has no {function}; the driver is too old") from error
    if code:
        library.nvmlErrorString.restype = ctypes.c_char_p
        reason = library.nvmlErrorString(code).decode()
        raise NvmlError(f"{_LIBRARY}: {function} failed: {reason}")
