"""Engines that quantise experts while they load them, on two ranks."""

import pytest

pytest.importorskip("sglang", reason="SGLang is not installed")

from ktd.model.facts import read_facts
from ktd.model.quantised import quantised
from ktd.rankfile import Word
from tests.acceptance.quantised import quantise_experts
from tests.acceptance.reference import Reference
from tests.live import MODEL
from tests.sgl.live_host import LiveHost

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
