"""A quantization_config is one of the formats that the kernels have, or refused by name."""

import pytest

from ktd.model.quantisation import BF16, QuantisationUnsupported, expert_format

HIDDEN, WIDTH = 256, 128
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}
TOKEN = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}


def compressed(weights, activations=None, layout="pack-quantized"):
    """A checkpoint of compressed-tensors with one group."""
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "config_groups": {"group_0": group},
    }


def eight_bits(kind, strategy="channel", **more):
    """Weights of eight bits and activations by token."""
    weights = {"num_bits": 8, "type": kind, "strategy": strategy, "symmetric": True, **more}
    return compressed(weights, {**TOKEN, "type": kind}, f"{kind}-quantized")


@pytest.mark.parametrize(
    ("config", "name", "expert_bytes"),
    [
        (None, "bf16", 2 * 98_304),
        ({}, "bf16", 2 * 98_304),
        # 2 x 1 blocks in each projection
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8_block", 98_304 + 4 * 6),
        (eight_bits("float"), "fp8_channel", 98_304 + 4 * 512),
        (eight_bits("float", "block", block_structure=[128, 128]), "fp8_block", 98_304 + 4 * 6),
        (eight_bits("int"), "int8", 98_304 + 4 * 512),
        # half a byte, and two bytes for each group
        (compressed(INT4), "int4", 49_152 + 2 * 3072),
        (compressed({**INT4, "actorder": "static"}), "int4", 49_152 + 2 * 3072),
        # and half a byte of zero point
        (GPTQ, "gptq", 49_152 + 2 * 3072 + 1536),
        ({**GPTQ, "sym": False}, "gptq", 49_152 + 2 * 3072 + 1536),
        (AWQ, "awq", 49_152 + 2 * 768 + 384),
        # a byte for 32, and bf16 biases
        ({"quant_method": "mxfp4"}, "mxfp4", 49_152 + 3072 + 2 * 512),
        (
            {"quant_method": "awq", "w_bit": 4, "q_group_size": 64, "zero_point": True},
            "awq",
            49_152 + 2 * 1536 + 768,
        ),
    ],
)
def test_what_the_kernels_have(config, name, expert_bytes):
    """Name and bytes of an expert, scales and zero points included."""
    found = expert_format(config)
    assert found.name == name
    assert found.expert_bytes(HIDDEN, WIDTH) == expert_bytes
    assert (found == BF16) == (not config)


@pytest.mark.parametrize(
    ("config", "runner", "not_there"),
    [
        (None, "triton", ""),
        (eight_bits("float"), "triton", ""),
        (eight_bits("int"), "triton", ""),
        (compressed(INT4), "triton", ""),
        (compressed({**INT4, "group_size": 128}), "triton", ""),
        (compressed({**INT4, "group_size": 64}), "auto", ""),
        (compressed({**INT4, "actorder": "static"}), "auto", ""),
        (GPTQ, "auto", ""),
        ({**GPTQ, "sym": False}, "auto", "asymmetrically"),
        (AWQ, "auto", ""),
        ({**AWQ, "group_size": 64}, "auto", "in groups of 64, with whose zero points"),
        ({**AWQ, "group_size": 256}, "auto", "in groups of 256, with whose zero points"),
        ({"quant_method": "mxfp4"}, "marlin", ""),
    ],
)
def test_where_a_gpu_computes_them(config, runner, not_there):
    """On SGLang's Triton runner where that has the format, which takes it as it is."""
    found = expert_format(config)
    assert found.runner == runner
    assert not_there in found.not_on_gpus
    assert bool(found.not_on_gpus) == bool(not_there)


def test_what_marlin_pads_is_in_a_slot_and_nowhere_else():
    """Hidden sizes go to 256 and widths to 128."""
    padded = expert_format({"quant_method": "mxfp4"})
    assert padded.slot_bytes(2880, 2880) == padded.expert_bytes(3072, 2944)
    assert padded.slot_bytes(512, 384) == padded.expert_bytes(512, 384)
    for other in (None, AWQ, compressed(INT4)):
        found = expert_format(other)
        assert found.slot_bytes(2880, 2880) == found.expert_bytes(2880, 2880)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"quant_method": "bitsandbytes"}, "quantised by bitsandbytes; use a checkpoint in bf16"),
        ({"quant_method": "fp8"}, "FP8 with one scale a tensor; use"),
        ({"quant_method": "fp8", "weight_block_size": [64, 128]}, r"blocks of \[64, 128\]; use"),
        ({**GPTQ, "bits": 8}, "GPTQ with 8 bits; use"),
        ({**GPTQ, "desc_act": True}, "GPTQ with act-order; use a checkpoint made with desc_act"),
        ({**GPTQ, "checkpoint_format": "gptq_v2"}, "layout gptq_v2; save the checkpoint in"),
        ({**GPTQ, "group_size": -1}, r"without groups of inputs \(group_size = -1\)"),
        ({**AWQ, "zero_point": False}, "AWQ without zero points; use"),
        ({**AWQ, "bits": 8}, "AWQ with 8 bits; use"),
        (eight_bits("float", "tensor"), "as float of 8 bits by tensor"),
        (eight_bits("int", symmetric=False), "as int of 8 bits by channel"),
        (compressed({**INT4, "symmetric": False}), "as int of 4 bits by group"),
        (compressed({**INT4, "actorder": "group"}), "as int of 4 bits by group"),
        (compressed({**INT4, "num_bits": 8}), "as int of 8 bits by group"),
        (compressed(INT4, TOKEN), "as int of 4 bits by group"),
        ({"quant_method": "compressed-tensors"}, "in 0 ways"),
    ],
)
def test_what_they_lack_is_refused_with_what_to_use_instead(config, sentence):
    """Nothing has been read by then but the configuration."""
    with pytest.raises(QuantisationUnsupported, match=sentence):
        expert_format(config)
