"""Shapes of models: what Transformers makes of their configurations, and what ktd reads of them."""

import re

import pytest

from ktd.errors import ConfigError
from ktd.shapes.catalogue import MODEL_NAMES, model_shape
from ktd.shapes.moe import SHAPES

GIB = 1 << 30
_SCALES = ("_scale_inv", "_scale")


def layer_of(name):
    """The shape of a model's layers, in whatever form its weights are."""
    return name.removesuffix("-fp8").removesuffix("-int4")


def names_and_shapes(name):
    """Tensors that are no routed expert's and no scale's, from our side."""
    shape = model_shape(name, layers=4)
    return {
        tensor.name: tensor.shape
        for tensor in shape.tensors
        if not tensor.expert and not tensor.name.endswith(_SCALES)
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


@pytest.mark.parametrize("name", [name for name in MODEL_NAMES if layer_of(name) in SHAPES])
def test_experts_are_as_the_layers_shape_says(name):
    """One catalogue for `ktd make-model` and `ktd bench kernels`."""
    layer, config = SHAPES[layer_of(name)], model_shape(name, layers=1).config
    tensors = [tensor for tensor in model_shape(name, layers=1).tensors if tensor.expert]
    weights = {
        (outputs, 8 * inputs if tensor.dtype == "I32" else inputs)
        for tensor in tensors
        for outputs, inputs in [tensor.shape]
        if not tensor.name.endswith(_SCALES)
    }
    assert weights == {(layer.intermediate, layer.hidden), (layer.hidden, layer.intermediate)}
    assert config["num_experts_per_tok"] == layer.top_k


def test_experts_in_int4_take_half_a_byte_and_a_scale_for_each_group():
    """And nothing else is quantised: `ignore` names what is not."""
    shape = model_shape("qwen3-30b-a3b-int4", layers=1)
    whole = model_shape("qwen3-30b-a3b", layers=1)
    assert shape.expert_bytes == whole.expert_bytes * (0.5 + 2 / 128) / 2
    assert shape.other_bytes == whole.other_bytes
    config = shape.config["quantization_config"]
    for tensor in shape.tensors:
        module = tensor.name.removesuffix(".weight")
        if len(tensor.shape) > 1 and not tensor.expert and "embed" not in module:
            assert any(
                re.fullmatch(left.removeprefix("re:"), module) for left in config["ignore"]
            ), module


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
