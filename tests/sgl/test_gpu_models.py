"""Engines over quantised experts in slots on a GPU, against the same values in float32."""

import pytest

pytest.importorskip("sglang", reason="SGLang is not installed")

from ktd.app.moe_runner import runner_words
from ktd.model.facts import read_facts
from tests.live import serve_arguments
from tests.sgl import quantised_models, tiny_models
from tests.sgl.live_host import LiveHost
from tests.sgl.quantised_models import NEAR, QUANTISED_ACTIVATIONS
from tests.sgl.test_architectures import TIMES_TRANSFORMERS_IN_BF16, distance
from tests.skips import needs_gpu

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore"), needs_gpu]

# Each on the runner that ktd chooses, and W4A16 on Marlin as well.
STARTS = {
    "int4-triton": ("int4", ()),
    "int4-marlin": ("int4", ("--moe-runner-backend", "auto")),
    "gptq": ("gptq", ()),
    "awq": ("awq", ()),
    "int8": ("int8", ()),
    "fp8-channel": ("fp8_channel", ()),
    "fp8-block": ("fp8_block", ()),
}


@pytest.mark.parametrize("threshold", [1 << 20, 8], ids=["pool", "streamed"])
@pytest.mark.parametrize(("name", "words"), STARTS.values(), ids=STARTS)
def test_answers_at_every_placement_are_near_the_reference(name, words, threshold, tmp_path):
    """With no expert in slots, some, and all, moved there while the engine serves.

    The pool computes what is in none, or the GPU does, where it streams.
    """
    made = quantised_models.build(
        name, tmp_path, model="qwen3_moe_gpu", recipes=quantised_models.GPU_RECIPES
    )
    texts = tiny_models.some_texts()
    exact = tiny_models.reference(tmp_path / "reference", texts)
    rounded = tiny_models.reference(tmp_path / "reference", texts, dtype="bfloat16")
    blind = tiny_models.reference(tmp_path / "reference", texts, tiny_models.without_experts)
    bound = TIMES_TRANSFORMERS_IN_BF16 * distance(rounded, exact)
    if name in QUANTISED_ACTIVATIONS:
        bound = NEAR * distance(blind, exact)
    assert bound < distance(blind, exact) / 4, "the test would not see missing experts"

    facts = read_facts(tmp_path / "quantised", device="cuda")
    assert facts.expert_format == name
    layers, count = made.moe_layers, made.num_experts
    with LiveHost(
        *runner_words(facts, "cuda"),
        *words,
        *serve_arguments(),
        model=tmp_path / "quantised",
        moe_layers=layers,
        num_experts=count,
        slots=count - 1,  # a layer whose every expert has a slot gives none up
        in_slots=0,
        device="cuda",
        prefill_threshold=threshold,
    ) as host:
        host.ready()
        assert host.ranks()[0].hello()["prefill_buffer_bytes"] > 0
        experts = range(count - 1)
        for batch, loads in enumerate((experts[:0], experts[::2], experts[1::2]), start=1):
            if loads:
                host.swap(batch, [(layer, -1, expert) for layer in layers for expert in loads])
            found = distance([host.logprobs(ids) for ids in texts], exact)
            print(f"{name} {' '.join(words)}: {found:.4f} after batch {batch}, bound {bound:.4f}")
            assert found <= bound
