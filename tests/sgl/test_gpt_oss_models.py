"""The checkpoint of gpt-oss that tests serve on a GPU: what it says, and how it is loaded."""

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("sglang", reason="SGLang is not installed")
mxfp4 = pytest.importorskip("transformers.integrations.mxfp4", reason="Transformers is missing")

from safetensors.torch import load_file
from torch import nn

from ktd.experts.store import HostStore
from ktd.experts.weights import WeightFormat
from ktd.model.facts import read_facts
from ktd.sgl.expert_loader import ExpertLoader
from ktd.sgl.host_views import StayOnHost
from ktd.sgl.limits import math_of
from ktd.sgl.weight_reader import WeightReader
from tests.sgl import gpt_oss_models
from tests.sgl.four_bits import GPT_OSS, MXFP4, Experts, Sizes, runner_config

pytestmark = pytest.mark.filterwarnings("ignore")

SIZES = Sizes(experts=8, hidden=192, width=96, group=32)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt-oss")
    return folder, gpt_oss_models.build(folder)


def test_the_reference_has_the_values_of_the_checkpoint(made):
    """As Transformers reads them."""
    folder, _ = made
    quantised = load_file(folder / "quantised/model.safetensors")
    reference = load_file(folder / "reference/model.safetensors")
    names = [name.removesuffix("_blocks") for name in quantised if name.endswith("_blocks")]
    assert len(names) == 6
    for name in names:
        blocks, scales = quantised[f"{name}_blocks"], quantised[f"{name}_scales"]
        values = mxfp4.convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
        assert torch.equal(values, reference[name])
        assert blocks.unique().numel() > 200


def test_it_is_a_model_that_a_gpu_serves(made):
    """Its configuration and headers say all that a start wants to know."""
    folder, recipe = made
    facts = read_facts(folder / "quantised", device="cuda")
    assert facts.architecture == "GptOssForCausalLM"
    assert (facts.moe_layers, facts.num_experts) == (recipe.moe_layers, recipe.num_experts)
    assert (facts.expert_format, facts.moe_runner) == ("mxfp4", "marlin")
    assert (facts.hidden_size, facts.expert_intermediate_size) == (SIZES.hidden, SIZES.width)
    stored = sum(
        t.numel() * t.element_size()
        for name, t in load_file(folder / "quantised/model.safetensors").items()
        if ".experts." in name
    )
    assert facts.host_store_bytes == stored


def test_sglangs_layer_computes_what_the_pool_is_told(made):
    """Clamped SwiGLU with one added to up, interleaved rows and biases."""
    layer = SimpleNamespace(
        moe_runner_config=runner_config(SIZES, GPT_OSS),
        with_bias=True,
        moe_ep_size=1,
        num_experts=SIZES.experts,
    )
    layer.moe_runner_config.num_fused_shared_experts = 0
    assert math_of(layer, torch.bfloat16, SIZES.experts) == GPT_OSS


class Model(nn.Module):
    """As much of SGLang's class as its loading of experts looks at: one layer's."""

    def __init__(self, experts, host):
        super().__init__()
        self.config = SimpleNamespace(
            intermediate_size=experts.sizes.width, num_local_experts=experts.sizes.experts
        )
        block = nn.Module()
        block.moe_tp_rank, block.moe_tp_size, block.moe_ep_rank, block.moe_ep_size = 0, 1, 0, 1
        for name in experts.format.fields:
            parameter = nn.Parameter(torch.empty(0, device="meta"), requires_grad=False)
            parameter.weight_loader = host
            host.attach(name, parameter)
            block.register_parameter(name, parameter)
        self.model = nn.Module()
        self.model.layers = nn.ModuleList([nn.Module()])
        self.model.layers[0].mlp = nn.Module()
        self.model.layers[0].mlp.experts = block


def test_sglang_loads_a_layer_into_host_memory_without_padding(made, monkeypatch):
    """Through its own class and its own loader, which would move every tensor to a device."""
    from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE
    from sglang.srt.layers.quantization.mxfp4 import Mxfp4Config
    from sglang.srt.models import gpt_oss

    one_rank = SimpleNamespace(moe_tp_rank=0, moe_tp_size=1, moe_ep_rank=0, moe_ep_size=1)
    monkeypatch.setattr(gpt_oss, "get_parallel", lambda: one_rank)
    folder, _ = made
    path = folder / "quantised/model.safetensors"
    experts = Experts(MXFP4, SIZES)
    sglang = SimpleNamespace(quant_config=Mxfp4Config(is_checkpoint_mxfp4_serialized=True))
    reader = WeightReader(threads=2)
    arrived = []
    host = ExpertLoader(
        experts.format.host_parameters(experts.declared()),
        store=HostStore(),
        load=lambda *args: FusedMoE.weight_loader(sglang, *args),
        loaded=arrived.append,
        reader=reader,
    )
    weights = [
        (name, tensor)
        for name, tensor in reader.tensors([str(path)])
        if "layers.0.mlp.experts" in name
    ]
    # Small tensors are read ahead and belong to no file any more.
    views = [tensor for _, tensor in weights if reader.file_of(tensor) is not None]
    assert len(views) >= 2
    with StayOnHost(lambda tensor: tensor.device.type == "cpu"):
        gpt_oss.GptOssForCausalLM._load_mxfp4_experts_weights(Model(experts, host), weights)
    host.finish()
    reader.close()
    assert host.missing() is None
    assert sum(arrived) == host.num_bytes
    found = experts.format.experts(host.tensors, experts.math)
    found.check()
    assert found.format is WeightFormat.MXFP4
    stored = load_file(path)
    for name, tensor in host.tensors.items():
        product, _, kind = name.partition("_weight")
        part = {"w13": "gate_up", "w2": "down"}[product]
        suffix = {"": "blocks", "_scale": "scales", "_bias": "bias"}[kind]
        wanted = stored[f"model.layers.0.mlp.experts.{part}_proj_{suffix}"]
        assert torch.equal(tensor, wanted.view(tensor.shape)), name
