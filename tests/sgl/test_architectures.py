"""Every architecture that ktd says it serves without a GPU, against Transformers."""

from statistics import fmean

import pytest

pytest.importorskip("sglang", reason="SGLang is not installed")

from ktd.model.facts import read_facts
from ktd.model.supported import ARCHITECTURES
from tests.sgl import tiny_models
from tests.sgl.live_host import LiveHost

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore")]

SLOTS = 3
# Routers of random models are near ties: one flip moves a position by 1, and rounding decides it.
# Transformers' own bf16 shows how much; SGLang rounds at other places, as much again in half.
TIMES_TRANSFORMERS_IN_BF16 = 1.5

# A start takes long: two of the most different run always, the others in the soak run.
ALWAYS = ("qwen2_moe", "granitemoe")
SERVED = {
    "glm4_moe": "Glm4MoeForCausalLM",
    "granitemoe": "GraniteMoeForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "olmoe": "OlmoeForCausalLM",
    "phimoe": "PhiMoEForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}


def flat(lists):
    return [value for values in lists for value in values]


def distance(one, other):
    return fmean(abs(a - b) for a, b in zip(flat(one), flat(other), strict=True))


def test_every_architecture_served_without_a_gpu_has_a_test():
    """Nothing is listed on trust."""
    listed = {name for name, row in ARCHITECTURES.items() if "cpu" in row.devices}
    assert listed == set(SERVED.values())


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ALWAYS else pytest.mark.soak)
        for name in sorted(SERVED)
    ],
)
def test_log_probabilities_agree_with_transformers_at_any_placement(name, tmp_path):
    """Expert widths are no multiple of a vector; experts move between two measurements."""
    recipe = tiny_models.build(name, tmp_path)
    texts = tiny_models.some_texts()
    exact = tiny_models.reference(tmp_path, texts)
    rounded = tiny_models.reference(tmp_path, texts, dtype="bfloat16")
    blind = tiny_models.reference(tmp_path, texts, tiny_models.without_experts)
    bound = TIMES_TRANSFORMERS_IN_BF16 * distance(rounded, exact)
    assert bound < distance(blind, exact) / 4, "the test would not see missing experts"

    facts = read_facts(tmp_path, device="cpu")
    assert facts.architecture == SERVED[name]
    assert (facts.moe_layers, facts.num_experts) == (recipe.moe_layers, recipe.num_experts)
    with LiveHost(
        model=tmp_path, moe_layers=facts.moe_layers, num_experts=facts.num_experts, slots=SLOTS
    ) as host:
        host.ready()
        # SGLang pads odd widths, with what our memory has: zeros.
        assert host.ranks()[0].hello()["host_store_bytes"] >= facts.host_store_bytes
        assert distance([host.logprobs(ids) for ids in texts], exact) <= bound
        for batch in range(1, 4):
            host.swap(batch, [(layer, batch - 1, batch + 3) for layer in facts.moe_layers])
        assert distance([host.logprobs(ids) for ids in texts], exact) <= bound


def test_a_class_of_sglang_that_ignores_dense_layers_is_not_served(tmp_path):
    """It gives layer 1 experts that nobody fills, and computes NaN with them."""
    recipe = tiny_models.build("qwen3_moe_dense_layer", tmp_path)
    with LiveHost(
        model=tmp_path,
        moe_layers=recipe.moe_layers,
        num_experts=recipe.num_experts,
        slots=SLOTS,
    ) as host:
        failure = host.ended()
    assert failure.kind == "model"
    assert failure.message == (
        "SGLang's class for this model has experts in layer 1, where its config.json and"
        " checkpoint have none; it cannot be served"
    )


def test_a_checkpoint_without_one_shard_ends_the_start_and_names_it(tmp_path):
    """Such an expert would be zeros."""
    from safetensors.torch import load_file, save_file

    recipe = tiny_models.build("mixtral", tmp_path)
    weights = tmp_path / "model.safetensors"
    tensors = load_file(weights)
    (missing,) = (
        name for name in tensors if "layers.2." in name and name.endswith("experts.5.w3.weight")
    )
    del tensors[missing]
    save_file(tensors, weights, metadata={"format": "pt"})
    with LiveHost(
        model=tmp_path,
        moe_layers=recipe.moe_layers,
        num_experts=recipe.num_experts,
        slots=SLOTS,
    ) as host:
        failure = host.ended()
    assert failure.kind == "model"
    assert failure.message == (
        "the checkpoint has no shard w3 of expert 5 of layer 2; download it again"
    )
