"""Configurations of quantised checkpoints on a host without a GPU."""

import importlib.metadata
import json
import sys

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("sglang", reason="SGLang is not installed")
RELEASE = pytest.mark.skipif(
    importlib.metadata.version("sglang") == "0.5.17", reason="SGLang 0.5.17 keeps these elsewhere"
)

from torch import nn

from ktd.enginespec import EngineSpec
from ktd.sgl import quantised_checkpoint
from ktd.sgl.expert_format import FormatRefused

# SGLang warns on import of what it has no kernels for.
pytestmark = [pytest.mark.filterwarnings("ignore"), RELEASE]

ATTENTION, EXPERTS = "model.layers.1.self_attn.o_proj", "model.layers.1.mlp.experts"
GPTQ = {"bits": 4, "group_size": 32, "desc_act": False}
AWQ = {"bits": 4, "group_size": 32, "zero_point": True}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}


def eight_bits(kind):
    """compressed-tensors by channel and token."""
    shared = {"num_bits": 8, "type": kind, "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": {**shared, "strategy": "channel", "dynamic": False},
        "input_activations": {**shared, "strategy": "token", "dynamic": True},
    }
    return {"format": f"{kind}-quantized", "config_groups": {"group_0": group}}


def configuration(name, options):
    from ktd.sgl import cpu_quantisation

    return getattr(cpu_quantisation, name).from_config(options)


def bare(kind):
    """A layer of SGLang's, of which only the class is looked at."""
    from sglang.srt.layers.linear import ReplicatedLinear
    from sglang.srt.layers.moe.fused_moe_triton import FusedMoE

    layer = object.__new__({"dense": ReplicatedLinear, "experts": FusedMoE}[kind])
    nn.Module.__init__(layer)
    layer.use_triton_kernels = layer.use_flashinfer_trtllm_moe = False
    return layer


@pytest.mark.parametrize(
    ("name", "options", "ignoring"),
    [
        ("CpuAwqConfig", AWQ, {"modules_to_not_convert": ["self_attn"]}),
        ("CpuGptqConfig", GPTQ, {"dynamic": {r"-:.*self_attn.*": {}}}),
        ("CpuFp8Config", FP8, {"modules_to_not_convert": [ATTENTION]}),
        ("CpuCompressedTensorsConfig", eight_bits("int"), {"ignore": [ATTENTION]}),
    ],
)
def test_dense_layers_are_left_alone_or_refused_by_name(name, options, ignoring):
    """SGLang would fail at the first step, or compute with what it has not unpacked."""
    layer = bare("dense")
    left = configuration(name, options | ignoring).get_quant_method(layer, ATTENTION)
    assert type(left).__name__ == "UnquantizedLinearMethod"
    with pytest.raises(FormatRefused, match=f"{ATTENTION} is quantised and no expert"):
        configuration(name, options).get_quant_method(layer, ATTENTION)


@pytest.mark.parametrize(
    ("name", "options", "method", "scheme"),
    [
        ("CpuAwqConfig", AWQ, "AWQMoEMethod", "AWQMoEScheme"),
        ("CpuGptqConfig", GPTQ, "GPTQMarlinMoEMethod", "GPTQMarlinMoEScheme"),
        ("CpuCompressedTensorsConfig", eight_bits("int"), "W8A8Int8MoEMethod", None),
        (
            "CpuCompressedTensorsConfig",
            eight_bits("float"),
            "CompressedTensorsFusedMoEMethod",
            "CompressedTensorsW8A8Fp8MoE",
        ),
        ("CpuAwqConfig", AWQ | {"modules_to_not_convert": ["experts"]}, "Unquantized", None),
        ("CpuGptqConfig", GPTQ | {"dynamic": {r"-:.*experts.*": {}}}, "Unquantized", None),
    ],
)
def test_experts_have_a_method_that_declares_the_checkpoints_tensors(name, options, method, scheme):
    """Or SGLang's unquantised one, where the checkpoint left them alone."""
    layer = bare("experts")
    found = configuration(name, options).get_quant_method(layer, EXPERTS)
    assert type(found).__name__.startswith(method)
    assert type(layer.scheme).__name__ == (scheme or "NoneType")


def test_experts_that_gptq_quantised_otherwise_than_the_rest_are_refused():
    """SGLang would read them as the rest."""
    config = configuration("CpuGptqConfig", GPTQ | {"dynamic": {r"+:.*experts.*": {"bits": 8}}})
    with pytest.raises(FormatRefused, match=r"quantised otherwise than the rest \({'bits': 8}\)"):
        config.get_quant_method(bare("experts"), EXPERTS)


def test_what_is_neither_has_no_method():
    """Embeddings, for example."""
    for name, options in (("CpuAwqConfig", AWQ), ("CpuGptqConfig", GPTQ)):
        assert configuration(name, options).get_quant_method(nn.Identity(), "any") is None


def test_refusals_are_the_models_fault_and_not_sglangs_words():
    """The daemon does not start such a model again."""
    from ktd.sgl.seam import _explain

    assert _explain(FormatRefused("it is quantised")) == ("model", "it is quantised")


def spec_of(folder, config, device="cpu"):
    """An engine over a checkpoint with this configuration."""
    (folder / "config.json").write_text(json.dumps(config))
    return EngineSpec(
        engine_id="t-1",
        runtime_dir=str(folder),
        model_path=str(folder),
        sglang_args=(),
        device=device,
        moe_layers=(0,),
        num_experts=4,
        experts_per_token=1,
        slots=(2,),
        initial=((),),
    )


def test_a_quantised_checkpoint_puts_them_into_sglangs_table(table, tmp_path):
    """Every process looks configurations up there."""
    from sglang.srt.layers.quantization import get_quantization_config

    from ktd.sgl import cpu_quantisation

    before = dict(table)
    quantised_checkpoint.prepare(spec_of(tmp_path, {}))
    quantised_checkpoint.prepare(spec_of(tmp_path, {"quantization_config": {}}, device="cuda"))
    assert table == before
    quantised_checkpoint.prepare(spec_of(tmp_path, {"quantization_config": {}}))
    assert get_quantization_config("gptq") is cpu_quantisation.CpuGptqConfig
    assert get_quantization_config("awq") is cpu_quantisation.CpuAwqConfig


def test_a_release_without_these_classes_is_named(monkeypatch, tmp_path):
    """An unquantised checkpoint is served by it nevertheless."""
    monkeypatch.delattr("ktd.sgl.cpu_quantisation", raising=False)
    monkeypatch.setitem(sys.modules, "ktd.sgl.cpu_quantisation", None)
    quantised_checkpoint.prepare(spec_of(tmp_path, {}))
    with pytest.raises(quantised_checkpoint.ReleaseTooOld, match=r"need SGLang 0\.5\.23, and 0\."):
        quantised_checkpoint.prepare(spec_of(tmp_path, {"quantization_config": {}}))
