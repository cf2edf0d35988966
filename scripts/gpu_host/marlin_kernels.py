"""Compiles the kernels of SGLang's Marlin runner, as SGLang would when they are first used.

    marlin_kernels.py SITE CACHE

SITE holds SGLang 0.5.17 and tvm_ffi, CACHE is to become ~/.cache/tvm-ffi of a host with Hopper
GPUs. SGLang looks for a module by its name and by a hash of its sources; that, and the compiler's
options, are those of sglang/kernels/jit/utils/compile.py. Seven minutes each on a core of its own.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import distributions
from pathlib import Path

_INCLUDES = (r'^\s*#\s*include\s*"([^"]+)"', r"^\s*#\s*include\s*<(sgl_kernel/[^>]+)>")
_SOURCE = """\
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/dtype.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/extra/c_env_api.h>
#include <tvm/ffi/function.h>

#include "{kernel}"
TVM_FFI_DLL_EXPORT_TYPED_FUNC(moe_wna16_marlin_gemm, (moe_wna16_marlin_gemm<{arguments}>));
"""
_OPTIONS = (
    *("-Xcompiler", "-fPIC", "-gencode=arch=compute_90a,code=sm_90a", "-DSGL_CUDA_ARCH=900"),
    *("-std=c++20", "-O3", "--expt-relaxed-constexpr"),
)
# A map of experts, which a layer with a slot for each does without; gpt-oss has biases.
_ARGUMENTS = [("bf16_t", *flags) for flags in itertools.product(("true", "false"), repeat=2)]


def source_hash(kernel: Path, folder: Path) -> str:
    """Of a source below ``folder`` and all that it includes from there."""
    digest, seen, left = hashlib.sha256(), set(), [kernel.resolve()]
    while left:
        path = left.pop()
        if path in seen or not path.is_file():
            continue
        seen.add(path)
        data = path.read_bytes()
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + data + b"\0")
        text = data.decode(errors="ignore")
        for pattern, base in zip(_INCLUDES, (path.parent, folder / "include"), strict=True):
            left += [(base / name).resolve() for name in re.findall(pattern, text, re.MULTILINE)]
    return digest.hexdigest()[:16]


def main() -> None:
    """Writes a folder for each module."""
    site, cache = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    folder = site / "sglang/kernels/jit"
    kernel = folder / "csrc/gemm/marlin_moe/moe_wna16_marlin.cuh"
    version = next(d.version for d in distributions(name="apache-tvm-ffi", path=[str(site)]))

    def compile_one(arguments: tuple[str, ...]) -> None:
        name = f"sgl_kernel_jit_moe_wna16_marlin_{'_'.join(arguments)}_" + source_hash(
            kernel, folder
        )
        out = cache / f"{name}__arch_9.0a__tvmffi_{version}"
        out.mkdir(parents=True, exist_ok=True)
        (out / "cuda.cu").write_text(_SOURCE.format(kernel=kernel, arguments=", ".join(arguments)))
        includes = (f"-I{site}/tvm_ffi/include", f"-I{folder}/include")
        compile_it = ["nvcc", *_OPTIONS, *includes, "-c", "cuda.cu", "-o", "cuda_0.o"]
        libraries = (f"-L{site}/tvm_ffi/lib", "-ltvm_ffi", "-lcudart")
        link_it = ["nvcc", "-shared", "cuda_0.o", *libraries, "-o", f"{name}.so"]
        for command in (compile_it, link_it):
            subprocess.run(command, cwd=out, check=True)
        (out / "cuda_0.o").unlink()
        print(f"{name}: done", flush=True)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, _ARGUMENTS))


if __name__ == "__main__":
    main()
