"""Shapes of models: what Transformers makes of their configurations, and what ktd reads of them."""

import re

import pytest

from ktd.errors import ConfigError
from ktd.shapes.catalogue import MODEL_NAMES, model_shape
from ktd.shapes.moe import SHAPES

GIB = 1 << 30


def names_and_shapes(name):
    """Tensors that are no routed expert's and no scale's, from our side."""
    shape = model_shape(name, layers=4)
    return {
        tensor.name: tensor.shape
        for tensor in shape.tensors
        if not tensor.expert and not tensor.name.endswith("_scale_inv")
    }


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_transformers_finds_the_same_tensors(name):
    """Built from our configuration without memory; experts, which it fuses, are left out."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = dict(model_shape(name, layers=4).config)
    config.pop("quantization_config", None)
    kind = transformers.AutoConfig.for_model(**config)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(kind)
    theirs = {
        re.sub(r"\.mlp\.gate\.", ".block_sparse_moe.gate.", key) if "mixtral" in name else key: (
            tuple(value.shape)
        )
        for key, value in model.state_dict().items()
        if ".experts." not in key and "inv_freq" not in key
    }
    assert names_and_shapes(name) == theirs


@pytest.mark.parametrize(
    ("name", "billions", "expert_gib"),
    [
        ("qwen3-30b-a3b", 30.5, 54.0),
        ("qwen3-next-80b-a3b-fp8", 79.7, 72.0),
        ("mixtral-8x7b", 46.7, 84.0),
    ],
)
def test_models_have_their_published_size(name, billions, expert_gib):
    """Parameters as on the model card, without the layer that guesses ahead."""
    shape = model_shape(name)
    weights = [tensor for tensor in shape.tensors if not tensor.name.endswith("_scale_inv")]
    parameters = sum(tensor.num_bytes // tensor.itemsize for tensor in weights)
    assert parameters / 1e9 == pytest.approx(billions, rel=0.01)
    assert shape.expert_bytes / GIB == pytest.approx(expert_gib, rel=0.001)


@pytest.mark.parametrize(
    "name", [name for name in MODEL_NAMES if name.removesuffix("-fp8") in SHAPES]
)
def test_experts_are_as_the_layers_shape_says(name):
    """One catalogue for `ktd make-model` and `ktd bench kernels`."""
    layer, config = SHAPES[name.removesuffix("-fp8")], model_shape(name, layers=1).config
    tensors = [tensor for tensor in model_shape(name, layers=1).tensors if tensor.expert]
    weights = {tensor.shape for tensor in tensors if not tensor.name.endswith("_scale_inv")}
    assert weights == {(layer.intermediate, layer.hidden), (layer.hidden, layer.intermediate)}
    assert config["num_experts_per_tok"] == layer.top_k


def test_names_are_unique():
    """Each tensor has a number of its own, and a name of its own."""
    tensors = model_shape("qwen3-next-80b-a3b-fp8", layers=4).tensors
    assert len({tensor.name for tensor in tensors}) == len(tensors)


def test_fewer_experts_than_a_token_needs_are_refused():
    """In one sentence."""
    with pytest.raises(ConfigError, match="chooses 8 experts for a token"):
        model_shape("qwen3-30b-a3b", num_experts=7)


def test_an_unknown_shape_is_refused_with_those_that_are_known():
    """So that nobody guesses."""
    with pytest.raises(ConfigError, match="no model shape 'gpt-5': use one of qwen3-30b-a3b"):
        model_shape("gpt-5")
