"""Engines over quantised experts without a GPU, against the same values in float32."""

import importlib.metadata

import pytest

pytest.importorskip("sglang", reason="SGLang is not installed")

from ktd.model.facts import read_facts
from tests.sgl import quantised_models, tiny_models
from tests.sgl.live_host import LiveHost
from tests.sgl.quantised_models import NEAR, QUANTISED_ACTIVATIONS
from tests.sgl.test_architectures import TIMES_TRANSFORMERS_IN_BF16, distance

pytestmark = [
    pytest.mark.engine,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(
        importlib.metadata.version("sglang") == "0.5.17",
        reason="quantised experts without a GPU need SGLang 0.5.23",
    ),
]

# A start takes long: one runs always, the others in the soak run.
ALWAYS = (("fp8_block", 1), ("gptq", 2))


@pytest.mark.parametrize(
    ("name", "ranks"),
    [
        pytest.param(name, ranks, marks=() if (name, ranks) in ALWAYS else pytest.mark.soak)
        for name in sorted(quantised_models.RECIPES)
        for ranks in (1, 2)
    ],
)
def test_answers_are_the_same_at_every_placement_and_near_the_reference(name, ranks, tmp_path):
    """The same but for the order in which two experts are added, which may round otherwise."""
    made = quantised_models.build(name, tmp_path)
    texts = tiny_models.some_texts()
    exact = tiny_models.reference(tmp_path / "reference", texts)
    rounded = tiny_models.reference(tmp_path / "reference", texts, dtype="bfloat16")
    blind = tiny_models.reference(tmp_path / "reference", texts, tiny_models.without_experts)
    rounding = distance(rounded, exact)
    bound = TIMES_TRANSFORMERS_IN_BF16 * rounding
    if name in QUANTISED_ACTIVATIONS:
        bound = NEAR * distance(blind, exact)
    assert bound < distance(blind, exact) / 4, "the test would not see missing experts"

    facts = read_facts(tmp_path / "quantised", device="cpu")
    assert facts.expert_format == name
    layers, count = made.moe_layers, made.num_experts
    with LiveHost(
        *("--tp-size", str(ranks)),
        model=tmp_path / "quantised",
        moe_layers=layers,
        num_experts=count,
        slots=count,
        in_slots=0,
    ) as host:
        host.ready()
        hellos = [rank.hello() for rank in host.ranks()]
        assert len(hellos) == ranks
        for what in ("slot_bytes", "host_store_bytes"):
            total = sum(hello[what] for hello in hellos)
            # Scales of the down projection's rows are on every rank.
            assert facts.host_store_bytes <= total <= facts.host_store_bytes * (1 + 0.02 * ranks)
            assert ranks > 1 or total == facts.host_store_bytes
        on_cpu = [host.logprobs(ids) for ids in texts]
        assert distance(on_cpu, exact) <= bound
        host.swap(1, [(layer, -1, expert) for layer in layers for expert in (1, 4, 6)])
        assert distance([host.logprobs(ids) for ids in texts], on_cpu) <= rounding
        host.swap(2, [(layer, -1, expert) for layer in layers for expert in (0, 2, 3, 5, 7)])
        assert distance([host.logprobs(ids) for ids in texts], on_cpu) <= rounding
