"""Which order of operations SGLang's quantisers on this GPU agree with most.

They are compiled with approximate division, so a quotient's last place is the GPU's own, and bf16
activations often stand exactly in the middle of two quantised values, where that place decides.
Prints, for each quantiser, how many of its codes differ from correctly rounded division, which the
CPU kernels take (csrc/kernels/e4m3.h), and from multiplying by a rounded reciprocal.

    python scripts/gpu_host/quantisers.py

Without a GPU, and with TRITON_INTERPRET=1, the same for the Triton kernels that run off CUDA.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from sglang.kernels.ops.quantization import fp8_kernel, int8_kernel

ROWS, COLUMNS, GROUP = 512, 2048, 128
E4M3 = torch.float8_e4m3fn


def _fp8(values: torch.Tensor) -> torch.Tensor:
    return values.clamp(-448, 448).to(E4M3).float()


def _int8(values: torch.Tensor) -> torch.Tensor:
    return (values.double().abs() + 0.5).floor().float() * values.sign()


def _divided(most: float, largest: torch.Tensor) -> torch.Tensor:
    return torch.tensor(most) / largest


def _reciprocal(most: float, largest: torch.Tensor) -> torch.Tensor:
    return torch.tensor(most) * (torch.tensor(1.0) / largest)


def _of_scale(most: float, largest: torch.Tensor) -> torch.Tensor:
    return torch.tensor(1.0) / (largest / torch.tensor(most))


def _report(
    name: str,
    codes: torch.Tensor,
    x: torch.Tensor,
    most: float,
    rounded: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    """One line: the share of codes that each order of operations gives otherwise."""
    rows = x.float()
    largest = rows.abs().amax(-1, keepdim=True)
    shares = []
    for order in (_divided, _reciprocal, _of_scale):
        other = rounded(rows * order(most, largest)) != codes
        shares.append(f"{order.__name__[1:]} {other.float().mean().item():.2e}")
    print(f"{name:12} codes that differ from: {', '.join(shares)}")


def main() -> None:
    """Quantise random rows and compare."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(1)).bfloat16()
    groups = x.view(-1, GROUP)
    given = x.to(device)
    if device == "cuda":
        codes, _ = fp8_kernel.sglang_per_token_group_quant_fp8(given, GROUP)
        _report("fp8_block", codes.float().cpu().view_as(groups), groups, 448.0, _fp8)
        codes, _ = fp8_kernel.sglang_per_token_quant_fp8(given)
        _report("fp8_channel", codes.float().cpu(), x, 448.0, _fp8)
        codes, _ = int8_kernel.per_token_quant_int8(given)
        _report("int8", codes.float().cpu(), x, 127.0, _int8)
        return
    unrounded = torch.empty(x.shape, dtype=torch.float32)
    quantise = fp8_kernel._per_token_group_quant_8bit_raw  # noqa: SLF001 - what runs off CUDA
    raw, _ = quantise(x, GROUP, output_q=unrounded)
    _report("fp8_block", _fp8(raw).view_as(groups), groups, 448.0, _fp8)


if __name__ == "__main__":
    main()
