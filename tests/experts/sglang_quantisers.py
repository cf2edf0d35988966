"""SGLang's own Triton kernels that quantise activations, run on the CPU by Triton's interpreter.

A program of its own, because the interpreter is chosen when Triton is imported::

    python sglang_quantisers.py IN OUT

IN holds ``{"format", "rows"}`` (bf16 ``[T, K]``), OUT gets the values that the product then
multiplies: float32 ``[T, K]``, quantised values times their scales.
"""

from __future__ import annotations

import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import torch
import triton.language as tl
from sglang.kernels.ops.quantization import fp8_kernel, int8_kernel

from ktd.experts.weights import FP8_BLOCK


def quantise(weight_format: str, rows: torch.Tensor) -> torch.Tensor:
    """What SGLang's product multiplies instead of ``rows``."""
    if weight_format == "int8":
        # CUDA's roundf, which the interpreter lacks: halves go away from zero.
        tl.extra.cuda.libdevice.round = lambda x: tl.where(
            x < 0, -tl.floor(0.5 - x), tl.floor(x + 0.5)
        )
        codes, scales = int8_kernel.per_token_quant_int8(rows)
        return codes.float() * scales
    group = FP8_BLOCK if weight_format == "fp8_block" else rows.shape[1]
    # Triton 3.8's interpreter loses a carry into the exponent when it rounds to E4M3, so it hands
    # out float32, which torch rounds.
    unrounded = torch.empty(rows.shape, dtype=torch.float32)
    codes, scales = fp8_kernel._per_token_group_quant_8bit_raw(rows, group, output_q=unrounded)
    return codes.to(torch.float8_e4m3fn).float() * scales.repeat_interleave(group, dim=1)


def main() -> None:
    """Reads IN, writes OUT."""
    job = torch.load(sys.argv[1])
    torch.save(quantise(job["format"], job["rows"]), sys.argv[2])


if __name__ == "__main__":
    main()
