"""The few calls of CUDA's driver that torch does not offer, or not as cheaply."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import TypeVar

from ktd.errors import CudaFailed

_Library = TypeVar("_Library", bound=ctypes.CDLL)

_DEVICE_POINTER = 3  # CU_POINTER_ATTRIBUTE_DEVICE_POINTER
_HOST_NODE = 134  # CU_DEVICE_ATTRIBUTE_HOST_NUMA_ID


class Kernel:
    """One kernel of a loaded module; the object may be called from any thread of the context."""

    def __init__(self, module: Module, name: str) -> None:
        self._name = name
        self._function = ctypes.c_void_p()
        _check(
            "cuModuleGetFunction",
            _driver().cuModuleGetFunction(
                ctypes.byref(self._function), module.handle, name.encode()
            ),
            f"the module has no kernel {name}",
        )

    def launch(self, blocks: int, threads: int, stream: int, *arguments: ctypes.Structure) -> None:
        """Enqueue it; while the stream is captured, add it to the graph.

        Args:
            blocks: Of a one-dimensional grid.
            threads: Of a block.
            stream: The driver's handle: ``torch.cuda.current_stream().cuda_stream``.
            arguments: Passed by value, copied before this returns.

        Raises:
            CudaFailed: The driver refuses, or reports what failed earlier.
        """
        pointers = (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
        status = _driver().cuLaunchKernel(
            self._function, blocks, 1, 1, threads, 1, 1, 0, ctypes.c_void_p(stream), pointers, None
        )
        if status:
            _check("cuLaunchKernel", status, f"{self._name} cannot be launched")


class Module:
    """Code loaded into the calling thread's current context, until the process ends.

    Raises:
        CudaFailed: There is no driver, or it refuses the code.
    """

    def __init__(self, cubin: bytes) -> None:
        self.handle = ctypes.c_void_p()
        _check(
            "cuModuleLoadData",
            _driver().cuModuleLoadData(ctypes.byref(self.handle), cubin),
            "compiled kernels cannot be loaded",
        )

    def kernel(self, name: str) -> Kernel:
        """Find a kernel by the name under which it was declared ``extern "C"``."""
        return Kernel(self, name)


def device_address(host_address: int) -> int:
    """Return where the device finds pinned host memory.

    Raises:
        CudaFailed: The memory is not pinned, or not mapped.
    """
    address = ctypes.c_uint64()
    _check(
        "cuPointerGetAttribute",
        _driver().cuPointerGetAttribute(
            ctypes.byref(address), _DEVICE_POINTER, ctypes.c_uint64(host_address)
        ),
        f"host memory at {host_address:#x} is not mapped for the device",
    )
    return address.value


def host_node(gpu: int) -> int | None:
    """Return the NUMA node of the host that a GPU is attached to; None where nobody says.

    No context is made: whoever asks takes nothing of a GPU.

    Args:
        gpu: Its ordinal among those that this process sees.

    Raises:
        CudaFailed: There is no driver.
    """
    driver = _driver()
    device, node = ctypes.c_int(), ctypes.c_int(-1)
    for status in (
        driver.cuInit(0),
        driver.cuDeviceGet(ctypes.byref(device), gpu),
        driver.cuDeviceGetAttribute(ctypes.byref(node), _HOST_NODE, device),
    ):
        if status:
            return None
    return node.value if node.value >= 0 else None


def copy_async(destination: int, source: int, num_bytes: int, stream: int) -> None:
    """Enqueue a copy between two addresses, each on the device or in registered host memory.

    The interpreter's lock is kept: the call takes 2 us, and taking the lock back from a busy
    scheduler may take milliseconds.

    Args:
        destination: Where to.
        source: Where from.
        num_bytes: How much.
        stream: The driver's handle.

    Raises:
        CudaFailed: The driver refuses, or reports what failed earlier.
    """
    status = _driver_with_lock().cuMemcpyAsync(
        ctypes.c_uint64(destination),
        ctypes.c_uint64(source),
        ctypes.c_size_t(num_bytes),
        ctypes.c_void_p(stream),
    )
    if status:
        _check("cuMemcpyAsync", status, f"{num_bytes} bytes cannot be copied")


@cache
def _driver() -> ctypes.CDLL:
    return _loaded(ctypes.CDLL)


@cache
def _driver_with_lock() -> ctypes.PyDLL:
    return _loaded(ctypes.PyDLL)


def _loaded(kind: type[_Library]) -> _Library:
    try:
        return kind("libcuda.so.1")
    except OSError as error:
        raise CudaFailed(f"CUDA's driver cannot be loaded: {error}") from error


def _check(call: str, status: int, what: str) -> None:
    if status == 0:
        return
    name = ctypes.c_char_p()
    text = ctypes.c_char_p()
    _driver().cuGetErrorName(status, ctypes.byref(name))
    _driver().cuGetErrorString(status, ctypes.byref(text))
    reason = f"{(name.value or b'error').decode()} {status}, {(text.value or b'unknown').decode()}"
    raise CudaFailed(f"{what}: {call} says {reason}")
