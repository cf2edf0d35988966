"""Quantising at load through the extension, against torch and compressed-tensors."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the checkpoint's tensors are torch's")

from ktd.experts import _native  # noqa: E402 - after the skip

ROWS, COLUMNS = 48, 256


def quantised(source, source_format, form, source_scale=None, threads=2):
    """Weights and scales of ``source`` in the format ``form``, and the slot's copy."""
    rows, columns = source.shape
    if form == "int4":
        weights = torch.empty(rows, columns // 8, dtype=torch.int32)
        scale = torch.empty(rows, columns // 32, dtype=torch.bfloat16)
    else:
        weights = torch.empty(rows, columns, dtype=torch.int8)
        scale = torch.empty(rows, dtype=torch.float32)
    address = 0 if source_scale is None else source_scale.data_ptr()
    _native.quantise(
        source.data_ptr(),
        source_format,
        address,
        rows,
        columns,
        form,
        weights.data_ptr(),
        scale.data_ptr(),
        threads,
    )
    slot = torch.empty(rows, columns, dtype=torch.bfloat16)
    _native.dequantise(
        weights.data_ptr(), scale.data_ptr(), form, rows, columns, slot.data_ptr(), threads
    )
    return weights, scale, slot


@pytest.fixture(name="source")
def source_fixture():
    """A matrix in bf16."""
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(1)).bfloat16()


def test_int4_is_packed_as_compressed_tensors_packs_it(source):
    """Its own function unpacks the steps; the slot holds them times the scale."""
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    weights, scale, slot = quantised(source, "bf16", "int4")
    steps = helpers.unpack_from_int32(weights, 4, torch.Size((ROWS, COLUMNS)))
    wide = scale.float().repeat_interleave(32, 1)
    assert torch.equal(slot, (steps.float() * wide).bfloat16())
    assert ((steps.float() * wide - source.float()).abs() <= 0.53 * wide).all()
    largest = source.float().abs().reshape(ROWS, -1, 32).amax(2)
    assert torch.equal(scale, (largest / 7.5).bfloat16())


def test_int8_keeps_each_weight_within_half_a_step(source):
    """A scale for each row, of which the largest weight is 127 steps."""
    weights, scale, slot = quantised(source, "bf16", "int8_weight")
    wide = weights.float() * scale[:, None]
    assert torch.equal(slot, wide.bfloat16())
    assert ((wide - source.float()).abs() <= 0.5001 * scale[:, None]).all()
    assert (weights.abs().amax(1) == 127).all()


@pytest.mark.parametrize("form", ["int4", "int8_weight"])
@pytest.mark.parametrize("blocks", [True, False])
def test_fp8_is_quantised_from_its_values(source, form, blocks):
    """The same as quantising what the FP8 weights stand for, if bf16 can hold that."""
    narrow = source.to(torch.float8_e4m3fn)
    if blocks:
        scale = torch.tensor([[2.0, 0.25]])
        wide = scale.repeat_interleave(128, 1)
    else:
        scale = 2.0 ** torch.arange(ROWS).remainder(5).float()
        wide = scale[:, None]
    dense = (narrow.float() * wide).bfloat16()
    name = "fp8_block" if blocks else "fp8_channel"
    from_fp8 = quantised(narrow, name, form, scale.contiguous())
    from_bf16 = quantised(dense, "bf16", form)
    for ours, expected in zip(from_fp8, from_bf16, strict=True):
        assert torch.equal(ours, expected)


def test_what_cannot_be_quantised_is_refused(source):
    """By a sentence with the value."""
    with pytest.raises(ValueError, match="not to gptq"):
        quantised(source, "bf16", "gptq")
    with pytest.raises(ValueError, match="source_scale is at address 0"):
        quantised(source, "fp8_block", "int4")
    with pytest.raises(ValueError, match="multiple of 32 inputs, not 40"):
        _native.quantise(
            source.data_ptr(), "bf16", 0, 1, 40, "int4", source.data_ptr(), source.data_ptr(), 1
        )
