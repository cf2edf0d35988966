"""compressed-tensors on a GPU: INT8 experts are computed, everything else is SGLang's own."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("sglang", reason="SGLang is not installed")

from ktd.sgl import quantised_checkpoint
from tests.sgl.test_cpu_quantisation import ATTENTION, EXPERTS, bare, eight_bits, spec_of

# SGLang warns on import of what it has no kernels for.
pytestmark = pytest.mark.filterwarnings("ignore")

INT4 = {
    "format": "pack-quantized",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {
                "num_bits": 4,
                "type": "int",
                "strategy": "group",
                "group_size": 32,
                "symmetric": True,
                "dynamic": False,
            },
            "input_activations": None,
        }
    },
}


@pytest.fixture
def method_for(table, tmp_path):
    """The name of what a registered configuration gives to a layer."""
    from sglang.srt.layers.quantization import get_quantization_config

    config = {"quantization_config": {"quant_method": "compressed-tensors"}}
    quantised_checkpoint.prepare(spec_of(tmp_path, config, device="cuda"))
    registered = get_quantization_config("compressed-tensors")

    def name(options, kind, prefix):
        layer = bare(kind)
        method = registered.from_config(options).get_quant_method(layer, prefix)
        return type(method).__name__, type(getattr(layer, "scheme", None)).__name__

    return name


def test_int8_experts_are_read_as_sglangs_own(method_for):
    """It has a scheme for them on NPUs alone."""
    assert method_for(eight_bits("int"), "experts", EXPERTS) == ("W8A8Int8MoEMethod", "NoneType")


def test_others_are_left_to_sglang(method_for):
    """Also those whose activations are not quantised, or that are left alone."""
    fp8 = method_for(eight_bits("float"), "experts", EXPERTS)
    assert fp8 == ("CompressedTensorsFusedMoEMethod", "CompressedTensorsW8A8Fp8MoE")
    method, scheme = method_for(INT4, "experts", EXPERTS)
    assert method == "CompressedTensorsFusedMoEMethod"
    assert scheme.startswith("CompressedTensorsWNA16")
    left = eight_bits("int") | {"ignore": ["re:.*experts.*", ATTENTION]}
    assert method_for(left, "experts", EXPERTS)[0] == "UnquantizedFusedMoEMethod"
    assert method_for(left, "dense", ATTENTION)[0] == "UnquantizedLinearMethod"


def test_an_unquantised_checkpoint_registers_nothing(table, tmp_path):
    """And one that another method quantised does not, either."""
    before = dict(table)
    for config in ({}, {"quantization_config": {"quant_method": "gptq"}}):
        quantised_checkpoint.prepare(spec_of(tmp_path, config, device="cuda"))
        assert table == before
