"""Every architecture that ktd says it serves, against Transformers.

On a GPU one engine has layers of every kind: with no slot, with some, with one for every expert;
short prompts are computed where experts are, long ones stream, and what it decodes passes through
graphs.
"""

import time
from dataclasses import dataclass, replace
from itertools import cycle, islice
from statistics import fmean

import pytest

from ktd.model.facts import read_facts
from ktd.model.supported import ARCHITECTURES, Architecture
from ktd.rankfile import KINDS
from tests.device import device, on_gpu
from tests.live import serve_arguments
from tests.sgl import tiny_models
from tests.sgl.live_host import LiveHost
from tests.skips import needs_gpu

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore")]

SLOTS, EXPERTS = 3, 8
# Routers of random models are near ties: one flip moves a position by 1, and rounding decides it.
# Transformers' own bf16 shows how much; SGLang rounds at other places, as much again in half.
TIMES_TRANSFORMERS_IN_BF16 = 1.5

# A start takes long: three of the most different run always, the others in the soak run.
ALWAYS = ("qwen2_moe", "granitemoe", "olmoe")
SERVED = {
    "glm4_moe": "Glm4MoeForCausalLM",
    "granitemoe": "GraniteMoeForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "olmoe": "OlmoeForCausalLM",
    "phimoe": "PhiMoEForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}
ON_GPUS_ALONE = {"qwen3_next": "Qwen3NextForCausalLM"}
# test_gpu_gpt_oss.py: its experts are in MXFP4.
ELSEWHERE = {"GptOssForCausalLM"}
# Between some_texts(4, 60) and some_texts(2, 150).
THRESHOLD = 100
DECODED = 24
# Longer than a GPU's counters take to the host.
COUNTED_SECONDS = 1.0
MORE_ARGUMENTS = {"qwen3_next": ("--max-mamba-cache-size", "64")}


@dataclass(frozen=True)
class Expected:
    """What texts should give, and how far from it an engine may be."""

    exact: list[list[float]]
    bound: float


def flat(lists):
    return [value for values in lists for value in values]


def distance(one, other):
    return fmean(abs(a - b) for a, b in zip(flat(one), flat(other), strict=True))


def expected(folder, texts):
    """By Transformers."""
    exact = tiny_models.reference(folder, texts)
    rounded = tiny_models.reference(folder, texts, dtype="bfloat16")
    blind = tiny_models.reference(folder, texts, tiny_models.without_experts)
    bound = TIMES_TRANSFORMERS_IN_BF16 * distance(rounded, exact)
    assert bound < distance(blind, exact) / 4, "the test would not see missing experts"
    return Expected(exact, bound)


def require_near(answers, wanted, what):
    found = distance(answers, wanted.exact)
    print(f"{what}: mean |difference| {found:.4f} of at most {wanted.bound:.4f}")
    assert found <= wanted.bound


def test_every_architecture_served_has_a_test():
    """Nothing is listed on trust."""
    listed = {name for name, row in ARCHITECTURES.items() if "cpu" in row.devices}
    assert listed == set(SERVED.values())
    on_gpus = {name for name, row in ARCHITECTURES.items() if "cuda" in row.devices}
    assert on_gpus <= set((SERVED | ON_GPUS_ALONE).values()) | ELSEWHERE


@pytest.mark.parametrize(
    "name",
    [
        *(
            pytest.param(name, marks=() if on_gpu() or name in ALWAYS else pytest.mark.soak)
            for name in sorted(SERVED)
        ),
        *(pytest.param(name, marks=needs_gpu) for name in ON_GPUS_ALONE),
    ],
)
def test_log_probabilities_agree_with_transformers_at_any_placement(name, tmp_path, monkeypatch):
    """Expert widths are no multiple of a vector; experts move between two measurements."""
    recipe = tiny_models.build(name, tmp_path, for_gpu=on_gpu())
    texts = tiny_models.some_texts()
    wanted = expected(tmp_path, texts)
    facts = facts_of(tmp_path, name, monkeypatch)
    assert (facts.moe_layers, facts.num_experts) == (recipe.moe_layers, recipe.num_experts)
    kinds = (0, SLOTS, EXPERTS) if on_gpu() else (SLOTS,)
    slots = dict(zip(facts.moe_layers, cycle(kinds), strict=False))
    with LiveHost(
        *(serve_arguments() if on_gpu() else ()),
        *MORE_ARGUMENTS.get(name, ()),
        model=tmp_path,
        moe_layers=facts.moe_layers,
        num_experts=facts.num_experts,
        slots=list(slots.values()),
        device=device(),
        prefill_threshold=THRESHOLD if on_gpu() else None,
    ) as host:
        host.ready()
        # SGLang pads odd widths, with what our memory has: zeros.
        assert host.ranks()[0].hello()["host_store_bytes"] >= facts.host_store_bytes
        require_near([host.logprobs(ids) for ids in texts], wanted, "first placement")
        movable = [layer for layer, count in slots.items() if count == SLOTS]
        for batch in range(1, 4):
            host.swap(batch, [(layer, batch - 1, batch + 3) for layer in movable])
        require_near([host.logprobs(ids) for ids in texts], wanted, "after swaps")
        if on_gpu():
            texts = tiny_models.some_texts(2, 150)
            wanted = expected(tmp_path, texts)
            require_near([host.logprobs(ids) for ids in texts], wanted, "streamed")
        require_decoding(host, tmp_path, texts)
        require_counts(host, facts)


def facts_of(folder, name, monkeypatch):
    """As if the architecture under test were admitted on this device."""
    architecture = (SERVED | ON_GPUS_ALONE)[name]
    row = ARCHITECTURES.get(architecture, Architecture(("cuda",)))
    monkeypatch.setitem(ARCHITECTURES, architecture, replace(row, devices=(device(),)))
    facts = read_facts(folder, device=device())
    assert facts.architecture == architecture
    return facts


def require_decoding(host, folder, texts):
    """Of what the engine decodes, against the reference for the same tokens."""
    prompts = [ids[:20] for ids in texts]
    answers = [host.decoded(ids, DECODED) for ids in prompts]
    whole = [ids + more for ids, (more, _) in zip(prompts, answers, strict=True)]
    exact, rounded = (
        [values[-DECODED:] for values in tiny_models.reference(folder, whole, dtype=dtype)]
        for dtype in ("float32", "bfloat16")
    )
    bound = TIMES_TRANSFORMERS_IN_BF16 * distance(rounded, exact)
    require_near([values for _, values in answers], Expected(exact, bound), "decoded")


def require_counts(host, facts):
    """Every pair of every layer, once: the last token is sampled, and may be computed too."""
    (prompt,) = tiny_models.some_texts(1, seed=4)
    before = pairs(host, facts)
    host.decoded(prompt, DECODED)
    time.sleep(COUNTED_SECONDS)
    tokens = len(prompt) + DECODED
    grown = [new - old for new, old in zip(pairs(host, facts), before, strict=True)]
    assert len(set(grown)) == 1
    assert grown[0] in [count * facts.experts_per_token for count in (tokens - 1, tokens)]


def pairs(host, facts):
    """Counted so far, by layer."""
    (rank,) = host.ranks()
    with memoryview(rank.counters) as counters:
        values = list(counters)
    rank.close()
    layers = len(facts.moe_layers)
    each = len(values) // (len(KINDS) * layers)
    parts = [values[at * each : (at + 1) * each] for at in range(len(KINDS) * layers)]
    return [sum(map(sum, islice(parts, layer, None, layers))) for layer in range(layers)]


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
