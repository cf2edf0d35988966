"""How far the CPU kernels' answers on 4-bit experts are from float64: a table for docs/results.

One expert, 32 tokens, one at a time (the kernels of few tokens) and all at once (on AMX, the
tiles), for every format and every ISA of this host. The reference multiplies the exact values of
the weights in float64 and rounds the activation between the products to bf16 as every kernel does;
the last column is what that rounding costs by itself. Errors are root mean squares, relative to
that of the output.

    python scripts/format_errors_4bit.py
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ktd.experts.isa import isas
from ktd.experts.pool import ExpertPool
from ktd.experts.weights import ExpertWeights, WeightFormat

TOKENS, HIDDEN, INNER = 32, 2048, 768
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
AWQ_NIBBLE = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])  # of output i of eight


@dataclass(frozen=True)
class Packed:
    """One tensor as the checkpoint has it, and what it means in float64."""

    weights: torch.Tensor
    scale: torch.Tensor
    zeros: torch.Tensor | None
    dense: torch.Tensor


def _words(nibbles: torch.Tensor) -> torch.Tensor:
    """Eight nibbles of the last dimension, the lowest first, as one int32."""
    places = torch.arange(8) * 4
    words = (nibbles.long().unflatten(-1, (-1, 8)) << places).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).int()


def _rows(form: WeightFormat, nibbles: torch.Tensor, about: torch.Tensor) -> Packed:
    """INT4 and MXFP4 of [rows, columns] nibbles; ``about`` is [rows, columns / 32]."""
    if form is WeightFormat.MXFP4:
        exponents = about.log2().round().clamp(-126, 127)
        codes = (exponents + 127).to(torch.uint8)
        packed = (nibbles[:, 0::2] | nibbles[:, 1::2] << 4).to(torch.uint8)
        wide = torch.exp2(exponents.double()).repeat_interleave(32, 1)
        return Packed(packed[None], codes[None], None, E2M1.double()[nibbles] * wide)
    scale = about.bfloat16()
    wide = scale.double().repeat_interleave(32, 1)
    return Packed(_words(nibbles)[None], scale[None], None, (nibbles - 8).double() * wide)


def _columns(form: WeightFormat, nibbles: torch.Tensor, about: torch.Tensor) -> Packed:
    """GPTQ and AWQ of the same, in groups of 32 with zero points that repeat."""
    rows, columns = nibbles.shape
    awq = form is WeightFormat.AWQ
    scale = about.T.contiguous().half()  # [groups, rows]
    stored = (torch.arange(rows) % 16).expand(columns // 32, rows)
    zeros = stored if awq else stored + 1
    spread = torch.empty(8, dtype=torch.long)
    spread[AWQ_NIBBLE] = torch.arange(8)  # the output that each nibble belongs to
    place = (torch.arange(rows) // 8 * 8) + spread.repeat(rows // 8)
    if awq:
        packed, packed_zeros = _words(nibbles.T[:, place]), _words(stored[:, place])
    else:
        by_eight = nibbles.T.unflatten(0, (-1, 8)).transpose(1, 2)  # [columns / 8, rows, 8]
        packed, packed_zeros = _words(by_eight).squeeze(-1), _words(stored)
    exact = (nibbles.T - zeros.repeat_interleave(32, 0)).double()
    dense = (exact * scale.double().repeat_interleave(32, 0)).T
    return Packed(packed.contiguous()[None], scale[None], packed_zeros.contiguous()[None], dense)


def _pack(form: WeightFormat, nibbles: torch.Tensor, about: torch.Tensor) -> Packed:
    row_major = form in (WeightFormat.INT4, WeightFormat.MXFP4)
    return (_rows if row_major else _columns)(form, nibbles, about)


def _cases() -> Iterator[tuple[str, float, bool]]:
    """Name, spread of the scales in powers of two, and whether nibbles are at the ends only."""
    yield "ordinary", 1.0, False
    yield "scales over 2^12", 12.0, False
    yield "saturated", 1.0, True


def _exact(x: torch.Tensor, w13: torch.Tensor, w2: torch.Tensor, *, rounded: bool) -> torch.Tensor:
    both = x.double() @ w13.T
    act = torch.nn.functional.silu(both[:, :INNER]) * both[:, INNER:]
    return (act.bfloat16().double() if rounded else act) @ w2.T


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


def main() -> None:
    """Print the table."""
    here = [isa.name for isa in isas() if isa.supported]
    print(f"| format | weights | {' | '.join(here)} | rounding the activation |")
    print("|---|---|" + "---|" * (len(here) + 1))
    for form in (WeightFormat.INT4, WeightFormat.MXFP4, WeightFormat.GPTQ, WeightFormat.AWQ):
        for name, spread, saturated in _cases():
            random = torch.Generator().manual_seed(1)
            packed = []
            for rows, columns in ((2 * INNER, HIDDEN), (HIDDEN, INNER)):
                nibbles = torch.randint(16, (rows, columns), generator=random)
                if saturated:
                    nibbles = torch.where(nibbles % 2 == 0, 7, 15)
                powers = (torch.rand(rows, columns // 32, generator=random) - 0.5) * spread
                packed.append(_pack(form, nibbles, torch.exp2(powers) / columns**0.5 / 4))
            first, second = packed
            x = torch.randn(TOKENS, HIDDEN, generator=random).bfloat16()
            exact = _exact(x, first.dense, second.dense, rounded=False)
            rounded = _exact(x, first.dense, second.dense, rounded=True)
            weights = ExpertWeights(
                form, first.weights, second.weights, first.scale, second.scale,
                first.zeros, second.zeros,
            )  # fmt: skip
            cells = []
            for isa in here:
                singly, together = _answers(isa, weights, x)
                cells.append(f"{_error(singly, rounded):.0e}, {_error(together, rounded):.0e}")
            cells.append(f"{_error(rounded, exact):.0e}")
            print(f"| {form.value} | {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
