"""What SGLang's quantisation methods declare, as the pool takes it."""

import importlib.metadata
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("sglang", reason="SGLang is not installed")

from torch import nn

from ktd.experts.weights import WeightFormat
from ktd.sgl.expert_format import FormatRefused, expert_format
from ktd.sgl.limits import ExpertMath

# SGLang warns on import of what it has no kernels for.
pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(
        importlib.metadata.version("sglang") == "0.5.17",
        reason="SGLang 0.5.17 keeps these elsewhere",
    ),
]

EXPERTS, HIDDEN, WIDTH, GROUP = 3, 192, 128, 32
GPTQ = {"bits": 4, "group_size": GROUP, "desc_act": False, "sym": True}
AWQ = {"bits": 4, "group_size": GROUP, "zero_point": True}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
BLOCK = {"weight_block_size": [128, 128]}
PACKED = {
    "num_bits": 4,
    "type": "int",
    "strategy": "group",
    "group_size": GROUP,
    "symmetric": True,
    "dynamic": False,
}


@pytest.fixture(autouse=True)
def backend(monkeypatch):
    """SGLang's methods ask a running server which runner was chosen."""
    from sglang.srt.layers.moe.utils import MoeRunnerBackend
    from sglang.srt.layers.quantization import fp8 as fp8_module
    from sglang.srt.layers.quantization.compressed_tensors.schemes import (
        compressed_tensors_w8a8_fp8_moe as channel_module,
    )

    for module in (fp8_module, channel_module):
        monkeypatch.setattr(module, "get_moe_runner_backend", lambda: MoeRunnerBackend.AUTO)


class Layer(nn.Module):
    """As much of SGLang's layer as its methods look at."""

    def __init__(self, scheme=None):
        super().__init__()
        self.scheme = scheme
        self.moe_tp_size = 1
        self.num_local_experts = EXPERTS
        self.moe_runner_config = SimpleNamespace(is_gated=True)
        self.hidden_size = HIDDEN
        self.intermediate_size_per_partition = WIDTH


def fp8(options):
    from sglang.srt.layers.quantization.fp8 import Fp8Config, Fp8MoEMethod

    return Fp8MoEMethod(Fp8Config.from_config(FP8 | options)), Layer()


def int8(_):
    from sglang.srt.layers.quantization.w8a8_int8 import W8A8Int8Config, W8A8Int8MoEMethod

    return W8A8Int8MoEMethod(W8A8Int8Config({})), Layer()


def gptq(options):
    from ktd.sgl.cpu_quantisation import CpuGptqConfig, GPTQMarlinMoEMethod, GPTQMarlinMoEScheme

    config = CpuGptqConfig.from_config(GPTQ | options)
    return GPTQMarlinMoEMethod(config), Layer(GPTQMarlinMoEScheme(config))


def awq(options):
    from ktd.sgl.cpu_quantisation import AWQMoEMethod, AWQMoEScheme, CpuAwqConfig

    config = CpuAwqConfig.from_config(AWQ | options)
    return AWQMoEMethod(config), Layer(AWQMoEScheme(config))


def compressed_tensors(scheme_class, layout, weights, activations):
    from compressed_tensors.quantization import QuantizationArgs
    from sglang.srt.layers.quantization.compressed_tensors import compressed_tensors as module

    config = module.CompressedTensorsConfig.from_config({"format": layout, "config_groups": {}})
    args = [QuantizationArgs.model_validate(weights)]
    scheme = getattr(module, scheme_class)
    made = (
        scheme(config, *args)
        if activations is None
        else scheme(*args, QuantizationArgs.model_validate(activations))
    )
    return module.CompressedTensorsFusedMoEMethod(config), Layer(made)


def int4(options):
    return compressed_tensors("CompressedTensorsWNA16MoE", "pack-quantized", PACKED | options, None)


def fp8_channel(options):
    weights = {"num_bits": 8, "type": "float", "strategy": "channel", "dynamic": False} | options
    kind = "tensor" if weights["strategy"] == "tensor" else "token"
    activations = {"num_bits": 8, "type": "float", "strategy": kind, "dynamic": True}
    return compressed_tensors(
        "CompressedTensorsW8A8Fp8MoE", "float-quantized", weights, activations
    )


def mxfp4(_):
    from sglang.srt.layers.quantization import mxfp4 as module

    method = object.__new__(module.Mxfp4MoEMethod)  # its constructor asks a running server
    method.use_marlin = method.use_mega_moe = method.use_deep_gemm = method.use_flashinfer = False
    method._fi_kernel = None
    return method, Layer()


def declared(method, layer):
    """Parameters as SGLang declares them."""
    with torch.device("meta"):
        method.create_weights(
            layer=layer,
            num_experts=EXPERTS,
            hidden_size=HIDDEN,
            intermediate_size_per_partition=WIDTH,
            params_dtype=torch.bfloat16,
        )
    return dict(layer.named_parameters())


@pytest.mark.parametrize(
    ("make", "options", "math", "expected"),
    [
        (fp8, BLOCK, ExpertMath(), WeightFormat.FP8_BLOCK),
        (fp8_channel, {}, ExpertMath(), WeightFormat.FP8_CHANNEL),
        (int8, {}, ExpertMath(), WeightFormat.INT8),
        (int4, {}, ExpertMath(), WeightFormat.INT4),
        (gptq, {}, ExpertMath(), WeightFormat.GPTQ),
        (gptq, {"sym": False}, ExpertMath(), WeightFormat.GPTQ),
        (awq, {}, ExpertMath(), WeightFormat.AWQ),
        (mxfp4, {}, ExpertMath(biases=True), WeightFormat.MXFP4),
        (mxfp4, {}, ExpertMath(), WeightFormat.MXFP4),
    ],
)
def test_what_sglang_declares_is_what_the_pool_takes(make, options, math, expected):
    """Names, shapes and types agree, for both products."""
    method, layer = make(options)
    found = expert_format(method, layer, math)
    assert found.weights is expected
    host = found.host_parameters(declared(method, layer))
    tensors = {name: torch.zeros(p.shape, dtype=p.dtype) for name, p in host.items()}
    weights = found.experts(tensors, math)
    weights.check()
    assert (weights.num_experts, weights.hidden, weights.intermediate) == (EXPERTS, HIDDEN, WIDTH)
    assert (weights.w13_bias is not None) == math.biases


@pytest.mark.parametrize(
    ("make", "options", "sentence"),
    [
        (fp8, {}, "FP8 experts with one scale a tensor are not implemented"),
        (fp8, {"weight_block_size": [64, 128]}, "FP8 experts in blocks of 64 x 128"),
        (fp8, {"quant_method": "mxfp8"}, "MXFP8 experts are not implemented"),
        (fp8_channel, {"strategy": "tensor"}, "FP8 experts with one scale a tensor"),
        (gptq, {"bits": 8}, "GPTQ experts of 8 bits are not implemented"),
        (gptq, {"desc_act": True}, r"act-order \(desc_act\) is not implemented"),
        (gptq, {"checkpoint_format": "gptq_v2"}, "in the layout 'gptq_v2' are not implemented"),
        (gptq, {"group_size": -1}, "GPTQ experts without groups of inputs"),
        (awq, {"zero_point": False}, "AWQ without zero points is not implemented"),
        (int4, {"num_bits": 8}, "compressed-tensors experts of 8 bits are not implemented"),
        (int4, {"symmetric": False}, "asymmetric INT4 of compressed-tensors"),
        (int4, {"actorder": "group"}, "INT4 experts with actorder"),
    ],
)
def test_a_variant_without_a_kernel_is_refused_by_name(make, options, sentence):
    """Before anything is allocated."""
    with pytest.raises(FormatRefused, match=sentence):
        expert_format(*make(options), ExpertMath())


def test_a_method_without_a_row_is_refused_with_what_to_use_instead():
    """SGLang has many more."""

    class ModelOptNvFp4FusedMoEMethod:
        pass

    with pytest.raises(
        FormatRefused,
        match=r"expert weights of ModelOptNvFp4FusedMoEMethod are not implemented; use a checkpoint"
        r" in bf16, FP8",
    ):
        expert_format(ModelOptNvFp4FusedMoEMethod(), Layer(), ExpertMath())


def test_biases_need_a_format_that_has_them():
    """gpt-oss in bf16, for example."""
    method, layer = int8({})
    with pytest.raises(FormatRefused, match="int8 experts with biases are not implemented"):
        expert_format(method, layer, ExpertMath(biases=True))


def test_an_order_of_inputs_that_is_none_is_taken_and_another_one_refused():
    """The configuration may say nothing of it."""
    method, layer = gptq({})
    found = expert_format(method, layer, ExpertMath())
    unstored = found.unstored(declared(method, layer))
    assert set(unstored) == {
        "w13_g_idx",
        "w2_g_idx",
        "w13_g_idx_sort_indices",
        "w2_g_idx_sort_indices",
    }
    places = (torch.arange(HIDDEN) // GROUP).to(torch.int32)
    unstored["w13_g_idx"](None, places, "a.name", shard_id="w1", expert_id=0)
    with pytest.raises(FormatRefused, match="act-order"):
        unstored["w13_g_idx"](None, places.flip(0), "a.name", shard_id="w1", expert_id=0)
