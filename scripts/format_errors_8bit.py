"""How far the CPU kernels' answers on 8-bit experts are from float64: a table for docs/results.

One expert, 32 tokens, one at a time (the kernels of few tokens) and all at once (panels, tiles),
for every format and every ISA of this host. The reference quantises activations as the format's
method does and multiplies the exact values in float64, with the activation between the products
rounded to bf16 as every kernel does; the last column is what rounding and quantising the
activations cost by themselves. Errors are root mean squares, relative to that of the output.

    python scripts/format_errors_8bit.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from ktd.experts.isa import isas
from ktd.experts.pool import ExpertPool
from ktd.experts.weights import FP8_BLOCK, ExpertWeights, WeightFormat

TOKENS, HIDDEN, INNER = 32, 2048, 768
E4M3 = torch.float8_e4m3fn


@dataclass(frozen=True)
class Stored:
    """One tensor as the checkpoint has it, and what it means in float64."""

    codes: torch.Tensor
    scale: torch.Tensor
    dense: torch.Tensor


def _codes(form: WeightFormat, case: str, shape: tuple[int, int]) -> torch.Tensor:
    """Codes of about a fifth of the format's range, or of its ends only."""
    random = torch.Generator().manual_seed(shape[0])
    eight = form in (WeightFormat.FP8_BLOCK, WeightFormat.FP8_CHANNEL)
    if case == "ends of the format":
        ends = [0.0, 2**-9, -7 * 2**-9, 2**-6, 448, -448] if eight else [0, 1, -1, 127, -127, -128]
        picked = torch.randint(len(ends), shape, generator=random)
        return torch.tensor(ends)[picked].to(E4M3 if eight else torch.int8)
    values = torch.randn(shape, generator=random) * (100 if eight else 30)
    if eight:
        return values.clamp(-448, 448).to(E4M3)
    return values.round().clamp(-128, 127).to(torch.int8)


def _store(form: WeightFormat, case: str, rows: int, columns: int) -> Stored:
    random = torch.Generator().manual_seed(columns)
    codes = _codes(form, case, (rows, columns))
    blocks = form is WeightFormat.FP8_BLOCK
    shape = (rows // FP8_BLOCK, columns // FP8_BLOCK) if blocks else (rows, 1)
    scale = (torch.rand(shape, generator=random) + 0.5) / 100 / columns**0.5
    wide = (
        scale.repeat_interleave(FP8_BLOCK, 0).repeat_interleave(FP8_BLOCK, 1) if blocks else scale
    )
    return Stored(codes[None], scale[None].contiguous(), codes.double() * wide.double())


def _quantised(form: WeightFormat, x: torch.Tensor) -> torch.Tensor:
    """What the product multiplies instead of bf16 rows, in float64; see csrc/kernels/e4m3.h."""
    if form is WeightFormat.INT8_WEIGHT:
        return x.double()
    rows = x.float()
    # A Python number divided by a tensor is not: torch multiplies it by a rounded reciprocal.
    eight, seven = torch.tensor(448.0), torch.tensor(127.0)
    if form is WeightFormat.FP8_BLOCK:
        groups = rows.unflatten(1, (-1, FP8_BLOCK))
        largest = groups.abs().amax(-1, keepdim=True).clamp(min=1e-10)
        codes = (groups * (eight / largest)).clamp(-448, 448).to(E4M3)
        return (codes.double() * (largest * (torch.tensor(1.0) / eight)).double()).flatten(1)
    largest = rows.abs().amax(1, keepdim=True)
    if form is WeightFormat.FP8_CHANNEL:
        scale = largest / eight
        return (rows * (torch.tensor(1.0) / scale)).clamp(-448, 448).to(
            E4M3
        ).double() * scale.double()
    scaled = (rows * (seven / largest)).double()
    return (scaled.abs() + 0.5).floor() * scaled.sign() * (largest / seven).double()


def _exact(
    x: torch.Tensor, w13: Stored, w2: Stored, seen: Callable[[torch.Tensor], torch.Tensor] | None
) -> torch.Tensor:
    """The expert in float64; ``seen`` is what a product sees of its bf16 inputs, None: all."""
    both = (x.double() if seen is None else seen(x)) @ w13.dense.T
    act = torch.nn.functional.silu(both[:, :INNER]) * both[:, INNER:]
    return (act if seen is None else seen(act.bfloat16())) @ w2.dense.T


def _answers(
    isa: str, weights: ExpertWeights, x: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token at a time, and all at once."""
    pool = ExpertPool(threads=1, isa=isa)
    layer = pool.add_layer(weights)
    ids = torch.zeros(TOKENS, 1, dtype=torch.int32)
    ones = torch.ones(TOKENS, 1)
    singly = [pool.forward(layer, x[t : t + 1], ids[:1], ones[:1]) for t in range(TOKENS)]
    return torch.cat(singly), pool.forward(layer, x, ids, ones)


def _error(answer: torch.Tensor, reference: torch.Tensor) -> float:
    """Root mean square of the difference, relative."""
    return float((answer - reference).square().mean().sqrt() / reference.square().mean().sqrt())


def _cases() -> Iterator[tuple[str, torch.Tensor]]:
    """Name of a case and its tokens."""
    random = torch.Generator().manual_seed(1)
    x = torch.randn(TOKENS, HIDDEN, generator=random)
    yield "ordinary", x.bfloat16()
    outliers = x.clone()
    outliers[:, ::500] *= 100
    yield "outliers in tokens", outliers.bfloat16()
    yield "ends of the format", x.bfloat16()


def main() -> None:
    """Print the table."""
    here = [isa.name for isa in isas() if isa.supported]
    print(f"| format | case | {' | '.join(here)} | rounding and quantising activations |")
    print("|---|---|" + "---|" * (len(here) + 1))
    forms = (
        WeightFormat.FP8_BLOCK, WeightFormat.FP8_CHANNEL, WeightFormat.INT8,
        WeightFormat.INT8_WEIGHT,
    )  # fmt: skip
    for form in forms:
        for name, x in _cases():
            first = _store(form, name, 2 * INNER, HIDDEN)
            second = _store(form, name, HIDDEN, INNER)
            plain = _exact(x, first, second, None)

            def seen(rows: torch.Tensor, form: WeightFormat = form) -> torch.Tensor:
                return _quantised(form, rows)

            quantised = _exact(x, first, second, seen)
            weights = ExpertWeights(form, first.codes, second.codes, first.scale, second.scale)
            cells = []
            for isa in here:
                singly, together = _answers(isa, weights, x)
                cells.append(f"{_error(singly, quantised):.0e}, {_error(together, quantised):.0e}")
            cells.append(f"{_error(quantised, plain):.0e}")
            print(f"| {form.value} | {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
