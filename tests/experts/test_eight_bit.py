"""FP8 and INT8 experts against SGLang's quantisers and compressed-tensors' dequantisation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the Python face of the pool takes torch tensors")

from ktd.experts import _native  # noqa: E402
from ktd.experts.pool import ExpertPool  # noqa: E402
from ktd.experts.weights import Activation, ExpertWeights, WeightFormat  # noqa: E402

SIZE = 256
RUNS = [row["name"] for row in _native.isas() if row["supported"]]
QUANTISING = [WeightFormat.FP8_BLOCK, WeightFormat.FP8_CHANNEL, WeightFormat.INT8]
FORMATS = [*QUANTISING, WeightFormat.INT8_WEIGHT]


@pytest.fixture(name="by_sglang", scope="module")
def by_sglang_fixture(tmp_path_factory):
    """What SGLang's Triton kernels make of bf16 rows (sglang_quantisers.py), each asked once."""
    pytest.importorskip("sglang", reason="its quantisers are the reference")
    pytest.importorskip("triton", reason="its quantisers are the reference")
    program = Path(__file__).with_name("sglang_quantisers.py")
    known = {}

    def quantise(weight_format, rows):
        key = weight_format, rows.view(torch.int16).numpy().tobytes()
        if key not in known:
            folder = tmp_path_factory.mktemp("quantised")
            given, got = folder / "rows.pt", folder / "quantised.pt"
            torch.save({"format": weight_format.value, "rows": rows}, given)
            subprocess.run([sys.executable, program, given, got], check=True, timeout=300)
            known[key] = torch.load(got)
        return known[key]

    return quantise


def activations():
    """bf16 rows that a product of E4M3 weights gives exactly: sums of two of one exponent.

    They reach over E4M3's whole range relative to the largest, with halves of its steps, and
    include zeros.
    """
    random = torch.Generator().manual_seed(5)
    signs = torch.randint(0, 2, (SIZE,), generator=random) * 2 - 1
    exponents = torch.randint(-6, 8, (SIZE,), generator=random)
    first = torch.randint(8, 16, (SIZE,), generator=random) * signs * 2.0 ** (exponents - 3)
    second = torch.randint(8, 16, (SIZE,), generator=random) * 2.0 ** (exponents - 3)
    first[::17] = 0
    second[::17] = 0
    first[0] = first[128] = 448
    return first, second


def passing_through(weight_format):
    """One expert whose activations are ``activations()`` for a token of two ones in bf16.

    The second product hands on what it multiplies, one output for each; alpha 0 and beta 2 make the
    curve between the products the identity.
    """
    first, second = activations()
    w13 = torch.zeros(1, 2 * SIZE, SIZE)
    w2 = torch.eye(SIZE).unsqueeze(0)
    blocks = weight_format is WeightFormat.FP8_BLOCK
    scales = [torch.ones(1, 4, 2), torch.ones(1, 2, 2)]
    if not blocks:
        scales = [torch.ones(1, 2 * SIZE), torch.ones(1, SIZE)]
    if weight_format is WeightFormat.INT8:
        w13[0, :SIZE, 0] = 1  # of a value that is in the row's scale
        scales[0][0, :SIZE] = first + second / 16
        dtype = torch.int8
    else:
        w13[0, :SIZE, 0], w13[0, :SIZE, 1] = first, second
        dtype = torch.float8_e4m3fn
    experts = ExpertWeights(
        weight_format,
        w13.to(dtype),
        w2.to(dtype),
        *scales,
        activation=Activation(alpha=0.0, beta=2.0),
    )
    token = torch.zeros(1, SIZE)
    token[0, 0] = 1
    token[0, 1] = 1 / 16
    return experts, token.bfloat16(), (first + second / 16).bfloat16().unsqueeze(0)


@pytest.mark.parametrize("isa", RUNS)
@pytest.mark.parametrize("weight_format", QUANTISING)
def test_activations_are_quantised_as_sglang_does(weight_format, isa, by_sglang):
    """Value for value, except where SGLang's Triton kernel divides in another order.

    That moves a value by 2^-22 of itself at most, which decides between two neighbours only where
    it stands in their middle.
    """
    experts, token, act = passing_through(weight_format)
    pool = ExpertPool(threads=1, isa=isa)
    layer = pool.add_layer(experts)
    one = torch.ones(1, 1)
    got = pool.forward(layer, token, torch.zeros(1, 1, dtype=torch.int32), one)
    wanted = by_sglang(weight_format, act)
    off = (got - wanted).abs() > 2**-21 * wanted.abs()
    for place in off.nonzero()[:, 1].tolist():
        middle = (got[0, place] + wanted[0, place]) / 2
        assert abs(act[0, place].float() - middle) <= 2**-21 * abs(middle), place
    assert off.sum() <= SIZE // 8


def stored(weight, weight_format):
    """Weights of a projection in a format: codes, scales, and what both stand for."""
    rows, columns = weight.shape
    most = 448.0 if "fp8" in weight_format.value else 127.0
    dtype = torch.float8_e4m3fn if "fp8" in weight_format.value else torch.int8
    if weight_format is WeightFormat.FP8_BLOCK:
        tiles = weight.reshape(rows // 128, 128, columns // 128, 128)
        scale = tiles.abs().amax(dim=(1, 3)) / most
        wide = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
    else:
        scale = weight.abs().amax(dim=1) / most
        wide = scale.unsqueeze(1)
    codes = weight / wide
    return (codes.round() if dtype is torch.int8 else codes).to(dtype), scale


def dequantised(codes, scale, weight_format):
    """By compressed-tensors' own function."""
    pytest.importorskip("compressed_tensors", reason="its dequantisation is the reference")
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    kind = "float" if "fp8" in weight_format.value else "int"
    if weight_format is WeightFormat.FP8_BLOCK:
        args = QuantizationArgs(num_bits=8, type=kind, strategy="block", block_structure=[128, 128])
    else:
        args = QuantizationArgs(num_bits=8, type=kind, strategy="channel")
        scale = scale.unsqueeze(1)
    return dequantize(codes, scale, args=args, dtype=torch.float32)


@pytest.mark.parametrize("isa", RUNS)
@pytest.mark.parametrize("weight_format", FORMATS)
def test_experts_are_what_compressed_tensors_makes_of_them(weight_format, isa, by_sglang):
    """With weights from compressed-tensors and activations from SGLang, the answer is the same.

    Two roundings of an activation to neighbours of bf16 may put its quantised value a step apart,
    so the distance is judged over the whole answer: less than a fifth of what quantising the
    activations does to it, or, where nothing is quantised, within bf16's rounding.
    """
    random = torch.Generator().manual_seed(9)
    gate_up = torch.randn(2 * SIZE, SIZE, generator=random) / 16
    down = torch.randn(SIZE, SIZE, generator=random) / 16
    x = torch.randn(9, SIZE, generator=random).bfloat16()
    codes13, scale13 = stored(gate_up, weight_format)
    codes2, scale2 = stored(down, weight_format)
    experts = ExpertWeights(
        weight_format, *(t.unsqueeze(0) for t in (codes13, codes2, scale13, scale2))
    )
    pool = ExpertPool(threads=1, isa=isa)
    ids = torch.zeros(9, 1, dtype=torch.int32)
    got = pool.forward(pool.add_layer(experts), x, ids, torch.ones(9, 1))

    def forward(quantise):
        both = quantise(x) @ dequantised(codes13, scale13, weight_format).T
        act = (torch.nn.functional.silu(both[:, :SIZE]) * both[:, SIZE:]).bfloat16()
        return quantise(act) @ dequantised(codes2, scale2, weight_format).T

    plain = forward(torch.Tensor.float)
    if weight_format is WeightFormat.INT8_WEIGHT:
        assert (got - plain).norm() <= 2**-8 * plain.norm()
        return
    wanted = forward(lambda rows: by_sglang(weight_format, rows))
    assert (got - wanted).norm() <= 0.2 * (wanted - plain).norm()


def test_interleaved_rows_are_refused_with_block_scales():
    """A block's scale would be for gate and up together."""
    experts, _, _ = passing_through(WeightFormat.FP8_BLOCK)
    mixed = ExpertWeights(
        experts.format,
        experts.w13,
        experts.w2,
        experts.w13_scale,
        experts.w2_scale,
        interleaved=True,
    )
    with pytest.raises(ValueError, match="fp8_block cannot have interleaved rows"):
        ExpertPool(threads=1).add_layer(mixed)
