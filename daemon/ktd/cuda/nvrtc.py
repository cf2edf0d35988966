"""CUDA C++ compiled at run time by NVRTC, which torch's CUDA wheels bring: no CUDA toolkit.

Only ``ctypes`` and the library: neither a GPU nor torch is needed to compile.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from ktd.errors import CudaFailed

_NAMES = ("libnvrtc.so.13", "libnvrtc.so.12")


def compile_cubin(
    source: str, name: str, arch: str, *, headers: Mapping[str, str], options: Sequence[str] = ()
) -> tuple[bytes, str]:
    """Compile one translation unit.

    Args:
        source: CUDA C++. NVRTC brings no standard headers.
        name: What messages call the source.
        arch: A real architecture: ``"sm_90"``.
        headers: Texts that the source includes, by the name it includes them under.
        options: Further options of NVRTC's.

    Returns:
        The cubin, and the compiler's log: warnings, or "".

    Raises:
        CudaFailed: There is no NVRTC library, it does not know ``arch``, or the source is refused;
            the message holds the compiler's log.
    """
    nvrtc = _library()
    program = ctypes.c_void_p()
    texts = (ctypes.c_char_p * len(headers))(*(text.encode() for text in headers.values()))
    names = (ctypes.c_char_p * len(headers))(*(header.encode() for header in headers))
    _check(
        nvrtc,
        nvrtc.nvrtcCreateProgram(
            ctypes.byref(program), source.encode(), name.encode(), len(headers), texts, names
        ),
        f"NVRTC does not take {name}",
    )
    try:
        flags = [f"--gpu-architecture={arch}", "--std=c++17", *options]
        array = (ctypes.c_char_p * len(flags))(*(flag.encode() for flag in flags))
        status = nvrtc.nvrtcCompileProgram(program, len(flags), array)
        log = _text(nvrtc, program, "ProgramLog").decode(errors="replace").strip("\0\n ")
        _check(nvrtc, status, f"{name} does not compile for {arch}", log)
        return _text(nvrtc, program, "CUBIN"), log
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _text(nvrtc: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    """What ``nvrtcGet<what>`` gives, whose size is what ``nvrtcGet<what>Size`` says."""
    size = ctypes.c_size_t()
    status = getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    _check(nvrtc, status, f"NVRTC does not tell the size of its {what}")
    buffer = ctypes.create_string_buffer(size.value)
    status = getattr(nvrtc, f"nvrtcGet{what}")(program, buffer)
    _check(nvrtc, status, f"NVRTC does not give its {what}")
    return buffer.raw


def _check(nvrtc: ctypes.CDLL, status: int, what: str, log: str = "") -> None:
    if status == 0:
        return
    reason = nvrtc.nvrtcGetErrorString(status).decode()
    raise CudaFailed(f"{what}: {reason}" + (f"\n{log}" if log else ""))


@cache
def _library() -> ctypes.CDLL:
    """The wheels' library, else the system's."""
    refused = ""
    for candidate in [*_in_wheels(), *_NAMES, ctypes.util.find_library("nvrtc")]:
        if candidate is None:
            continue
        try:
            # The compiler opens it by its bare name, and looks nowhere beside itself.
            for builtins in _builtins(candidate):
                ctypes.CDLL(str(builtins))
            library = ctypes.CDLL(str(candidate))
        except OSError as error:
            refused = f" ({error})"
            continue
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        return library
    raise CudaFailed(
        f"no NVRTC library can be loaded{refused}: install torch with CUDA, whose wheels bring it"
    )


def _builtins(library: Path | str) -> list[Path]:
    """The builtins that lie beside a library that is known by its path."""
    if isinstance(library, str):
        return []
    beside = library.parent.glob("libnvrtc-builtins.so.*")
    return [path for path in beside if ".alt." not in path.name]


def _in_wheels() -> list[Path]:
    """Where the wheels put it: ``nvidia/cu13/lib``, or ``nvidia/cuda_nvrtc/lib`` before."""
    spec = importlib.util.find_spec("nvidia")
    roots = spec.submodule_search_locations if spec else None
    return [
        path
        for root in roots or ()
        for path in sorted(Path(root).glob("*/lib/libnvrtc.so.*"), reverse=True)
        if ".alt." not in path.name
    ]
