"""4-bit experts as other projects write them, against what those make of the bytes."""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch", reason="the Python face of the pool takes torch tensors")

from ktd.experts.isa import isas  # noqa: E402 - after the skip
from ktd.experts.pool import ExpertPool  # noqa: E402
from ktd.experts.weights import ExpertWeights, WeightFormat, refuse_act_order  # noqa: E402

ISAS = [
    pytest.param(
        isa.name,
        marks=pytest.mark.skipif(
            not isa.supported,
            reason=f"this CPU cannot run the {isa.name} kernels, it lacks {' '.join(isa.missing)}",
        ),
    )
    for isa in isas()
]
EXPERTS, HIDDEN, INNER = 3, 256, 128
SHAPES = {"w13": (2 * INNER, HIDDEN), "w2": (HIDDEN, INNER)}


def codes(rows, columns, seed):
    """Nibbles 0 to 15 of ``[E, rows, columns]``."""
    random = torch.Generator().manual_seed(seed)
    return torch.randint(16, (EXPERTS, rows, columns), generator=random)


def scales(rows, groups, dtype):
    """Scales of about 1 / 64 for ``[E, rows, groups]``."""
    random = torch.Generator().manual_seed(rows + groups)
    return ((torch.rand(EXPERTS, rows, groups, generator=random) + 0.5) / 64).to(dtype)


def same(pool_isa, moe_step, weights, dense):
    """Compares a step of few tokens on the packed experts with float32 on the dense ones."""
    step = moe_step(EXPERTS, HIDDEN, INNER, 4, 2)
    step = replace(step, w13=dense["w13"], w2=dense["w2"])
    pool = ExpertPool(threads=2, isa=pool_isa)
    out = pool.forward(pool.add_layer(weights), step.x, step.ids, step.weights)
    expected, bound = step.reference()
    assert ((out - expected).abs() <= bound).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("group", "dtype"), [(32, torch.bfloat16), (64, torch.float32), (128, torch.float16)]
)
def test_int4_is_what_compressed_tensors_packs(moe_step, isa, group, dtype):
    """Pack-quantized W4A16, symmetric, as Kimi-K2 has it."""
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    packed, scale, dense = {}, {}, {}
    for name, (rows, columns) in SHAPES.items():
        values = (codes(rows, columns, group) - 8).to(torch.int8)
        packed[name] = helpers.pack_to_int32(values, 4).contiguous()
        scale[name] = scales(rows, columns // group, dtype)
        dense[name] = values.float() * scale[name].float().repeat_interleave(group, 2)
    weights = ExpertWeights(
        WeightFormat.INT4, packed["w13"], packed["w2"], scale["w13"], scale["w2"]
    )
    same(isa, moe_step, weights, dense)


@pytest.mark.parametrize("isa", ISAS)
def test_mxfp4_is_what_transformers_dequantises(moe_step, isa):
    """Blocks and scales of gpt-oss; Transformers gives them transposed."""
    mxfp4 = pytest.importorskip("transformers.integrations.mxfp4")
    packed, scale, dense = {}, {}, {}
    for name, (rows, columns) in SHAPES.items():
        nibbles = codes(rows, columns, 4)
        packed[name] = (nibbles[..., 0::2] | nibbles[..., 1::2] << 4).to(torch.uint8)
        exponents = codes(rows, columns // 32, 5)
        scale[name] = (115 + exponents % 8).to(torch.uint8)
        blocks = packed[name].reshape(EXPERTS, rows, columns // 32, 16)
        dense[name] = mxfp4.convert_moe_packed_tensors(blocks, scale[name]).transpose(1, 2).float()
    weights = ExpertWeights(
        WeightFormat.MXFP4, packed["w13"], packed["w2"], scale["w13"], scale["w2"]
    )
    same(isa, moe_step, weights, dense)


@pytest.mark.parametrize("isa", ISAS)
def test_gptq_is_what_sglang_packs(moe_step, isa):
    """Nibbles along the inputs, zero points less one along the outputs."""
    packers = pytest.importorskip("sglang.srt.layers.quantization.utils")
    packed, scale, zeros, dense = {}, {}, {}, {}
    group = 64
    for name, (rows, columns) in SHAPES.items():
        nibbles = codes(columns, rows, 6)
        stored = codes(columns // group, rows, 7)
        packed[name] = torch.stack(
            [packers.pack_rows(expert, 4, columns, rows) for expert in nibbles]
        )
        zeros[name] = torch.stack(
            [packers.pack_cols(expert, 4, columns // group, rows) for expert in stored]
        )
        scale[name] = scales(columns // group, rows, torch.float16)
        offsets = nibbles - (stored + 1).repeat_interleave(group, 1)
        wide = scale[name].float().repeat_interleave(group, 1)
        dense[name] = (offsets.float() * wide).transpose(1, 2)
    weights = ExpertWeights(
        WeightFormat.GPTQ,
        packed["w13"],
        packed["w2"],
        scale["w13"],
        scale["w2"],
        zeros["w13"],
        zeros["w2"],
    )
    same(isa, moe_step, weights, dense)


@pytest.mark.parametrize("isa", ISAS)
def test_awq_is_what_sglang_dequantises(moe_step, isa):
    """Nibbles of any order: SGLang's own function says which output is where."""
    awq = pytest.importorskip("sglang.kernels.ops.quantization.awq_triton")
    group = 64
    packed, scale, zeros, dense = {}, {}, {}, {}
    random = torch.Generator().manual_seed(8)

    def words(*shape):
        return torch.randint(-(2**31), 2**31, shape, generator=random).int()

    for name, (rows, columns) in SHAPES.items():
        packed[name] = words(EXPERTS, columns, rows // 8)
        zeros[name] = words(EXPERTS, columns // group, rows // 8)
        scale[name] = scales(columns // group, rows, torch.float32)
        dense[name] = torch.stack(
            [
                awq.awq_dequantize_decomposition(packed[name][e], scale[name][e], zeros[name][e]).T
                for e in range(EXPERTS)
            ]
        ).contiguous()
    weights = ExpertWeights(
        WeightFormat.AWQ,
        packed["w13"],
        packed["w2"],
        scale["w13"],
        scale["w2"],
        zeros["w13"],
        zeros["w2"],
    )
    same(isa, moe_step, weights, dense)


class TestActOrder:
    """GPTQ's reordered inputs."""

    def test_inputs_in_their_places_are_taken(self):
        """What a checkpoint without desc_act carries."""
        refuse_act_order(torch.arange(256).int() // 64, 64)

    def test_another_order_is_refused_by_name(self):
        """Two inputs that changed groups are enough."""
        g_idx = torch.arange(256).int() // 64
        g_idx[[0, 255]] = g_idx[[255, 0]]
        with pytest.raises(ValueError, match="act-order"):
            refuse_act_order(torch.stack([g_idx, g_idx]), 64)
