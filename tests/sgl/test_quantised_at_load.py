"""Engines that quantise experts while they load them, from bf16 on two ranks and from FP8."""

import pytest

pytest.importorskip("sglang", reason="SGLang is not installed")
torch = pytest.importorskip("torch", reason="torch is not installed")

from ktd.model.facts import read_facts
from ktd.model.quantised import quantised
from ktd.rankfile import Word
from tests.acceptance.quantised import quantise_experts
from tests.acceptance.reference import Reference
from tests.live import MODEL, serve_arguments
from tests.sgl import quantised_models, tiny_models
from tests.sgl.live_host import LiveHost
from tests.sgl.test_architectures import TIMES_TRANSFORMERS_IN_BF16, distance

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore")]

LAYERS, EXPERTS, SLOTS = range(6), 32, 8


def mean_distance(host, reference, ids):
    pairs = list(zip(host.logprobs(ids), reference.logprobs(ids), strict=True))
    return sum(abs(a - b) for a, b in pairs) / len(pairs)


def test_each_of_two_ranks_quantises_its_part_and_fills_slots_with_its_values():
    """Memory is what the sum before the start says; copies write whole slots; answers stay."""
    facts = quantised(read_facts(MODEL, device="cpu"), "int4", ranks=2, named="")
    reference = Reference(MODEL, lambda model: quantise_experts(model, "int4"))
    checkpoint = Reference(MODEL)
    ids = reference.text("prose")
    with LiveHost("--tp-size", "2", cpu_expert_format="int4", slots=SLOTS) as host:
        host.ready()
        hellos = [rank.hello() for rank in host.ranks()]
        stored = {hello["host_store_bytes"] for hello in hellos}
        assert stored == {facts.host_store_bytes // 2}
        assert {hello["slot_bytes"] for hello in hellos} == {6 * SLOTS * facts.expert_bytes // 2}
        loaded = [rank.word(Word.LOADED_BYTES) for rank in host.ranks()]
        assert loaded == [rank.word(Word.TOTAL_BYTES) for rank in host.ranks()]
        assert set(loaded) == stored
        # The bar of the acceptance tests. The checkpoint's own values are much farther away.
        assert mean_distance(host, reference, ids) <= 0.035
        assert mean_distance(host, checkpoint, ids) > 0.1
        for batch in range(1, 4):
            first = (batch - 1) * SLOTS
            moves = [
                (layer, first + i, first + SLOTS + i) for layer in LAYERS for i in range(SLOTS)
            ]
            host.swap(batch, moves)
            assert mean_distance(host, reference, ids) <= 0.035
        copied = [rank.word(Word.SWAP_BYTES) for rank in host.ranks()]
        assert copied == [3 * 6 * SLOTS * facts.expert_bytes // 2] * 2


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("fp8_block", "int8"),
        # A start takes long: one runs always.
        pytest.param("fp8_channel", "int4", marks=pytest.mark.soak),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_fp8_experts_are_quantised_and_slots_hold_their_values_in_bf16(
    name, form, device, tmp_path
):
    """From their values, not from those values in bf16; no placement changes the answer."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU that torch can use")
    made = quantised_models.build(name, tmp_path, for_gpu=device == "cuda")
    texts = tiny_models.some_texts()
    exact = tiny_models.reference(
        tmp_path / "reference", texts, lambda model: quantise_experts(model, form)
    )
    unquantised = tiny_models.reference(tmp_path / "reference", texts)
    rounded = tiny_models.reference(tmp_path / "reference", texts, dtype="bfloat16")
    blind = tiny_models.reference(tmp_path / "reference", texts, tiny_models.without_experts)
    bound = TIMES_TRANSFORMERS_IN_BF16 * distance(rounded, unquantised)
    assert bound < distance(blind, exact) / 4, "the test would not see missing experts"
    layers, count = made.moe_layers, made.num_experts
    with LiveHost(
        *(serve_arguments() if device == "cuda" else ()),
        device=device,
        model=tmp_path / "quantised",
        moe_layers=layers,
        num_experts=count,
        slots=count,
        in_slots=0,
        cpu_expert_format=form,
    ) as host:
        host.ready()
        hello = host.ranks()[0].hello()
        assert hello["host_store_bytes"] < 0.6 * hello["slot_bytes"]
        assert distance([host.logprobs(ids) for ids in texts], exact) <= bound
        for batch, experts in enumerate([(1, 4, 6), (0, 2, 3, 5, 7)], start=1):
            host.swap(batch, [(layer, -1, expert) for layer in layers for expert in experts])
            assert distance([host.logprobs(ids) for ids in texts], exact) <= bound
