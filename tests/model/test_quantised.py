"""Which experts are quantised while they are loaded, and what they take then."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ktd.errors import ModelUnsupported
from ktd.model.facts import read_facts
from ktd.model.memory import fitting_ratio, needs_of
from ktd.model.quantised import quantised

FACTS = read_facts(Path(__file__).parents[2] / "models/ktd-tiny", device="cpu")
HIDDEN, WIDTH = 256, 64
NAMED = "--cpu-expert-format"


@pytest.mark.parametrize(
    ("wanted", "ranks", "size"),
    [
        # Weights, then scales: gate and up have 64 rows each in all, down 256 on each rank.
        ("int8", 1, 3 * 256 * 64 + 4 * (2 * 64 + 256)),
        ("int8", 2, 3 * 256 * 64 + 4 * (2 * 64 + 2 * 256)),
        # Half a byte, and two for each 32.
        ("int4", 1, 3 * 256 * 64 * 9 // 16),
        ("int4", 2, 3 * 256 * 64 * 9 // 16),
    ],
)
def test_host_memory_holds_the_quantised_experts_and_slots_the_whole_ones(wanted, ranks, size):
    """The sum before a start, and the share that fits, tell the two apart."""
    facts = quantised(FACTS, wanted, ranks=ranks, named=NAMED)
    assert (facts.expert_format, facts.cpu_expert_format) == ("bf16", wanted)
    assert (facts.expert_bytes, facts.cpu_expert_bytes) == (3 * HIDDEN * WIDTH * 2, size)
    needs = needs_of(facts, slots=10, ranks=ranks, device="cpu")
    assert needs.experts == 6 * 32 * size
    assert needs.slots == 10 * FACTS.expert_bytes
    assert fitting_ratio(facts, 48 * FACTS.expert_bytes) == 0.25


def test_without_it_both_are_the_checkpoints():
    """The default changes nothing."""
    assert FACTS.cpu_expert_format == "bf16"
    assert FACTS.cpu_expert_bytes == FACTS.expert_bytes


@pytest.mark.parametrize(
    ("changes", "ranks", "sentence"),
    [
        (
            {"expert_format": "mxfp4"},
            1,
            "experts in mxfp4, and ktd quantises bf16, fp8_block, fp8_channel only",
        ),
        ({"hidden_size": 272}, 1, r"multiples of 32, but \S+ has 272 and 64: take int8\."),
        ({}, 4, r"multiples of 32, but \S+ has 256 and 16: take int8\."),
    ],
)
def test_what_cannot_be_quantised_is_refused_in_one_sentence(changes, ranks, sentence):
    """The setting, the value, and what to do."""
    with pytest.raises(ModelUnsupported, match=f"^{NAMED} is int4, .*{sentence}") as caught:
        quantised(replace(FACTS, **changes), "int4", ranks=ranks, named=NAMED)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["fp8_block", "fp8_channel"])
def test_slots_of_a_quantised_fp8_checkpoint_are_in_bf16(source):
    """They hold what the quantised values are, which FP8 could not."""
    fp8 = replace(FACTS, expert_format=source, expert_bytes=FACTS.expert_bytes // 2 + 100)
    facts = quantised(fp8, "int4", ranks=1, named=NAMED)
    assert facts.expert_bytes == FACTS.expert_bytes
    assert (facts.expert_format, facts.cpu_expert_format) == (source, "int4")


def test_int8_takes_any_size():
    """Its scales belong to rows."""
    facts = quantised(replace(FACTS, hidden_size=250), "int8", ranks=4, named=NAMED)
    assert facts.cpu_expert_format == "int8"
