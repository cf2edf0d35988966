"""Which of SGLang's runners a GPU computes experts on, and what a start makes of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from ktd.app.moe_runner import repacks, runner_words
from ktd.model.facts import read_facts

MODEL = Path(__file__).parents[2] / "models/ktd-tiny"
FACTS = read_facts(MODEL, device="cpu")
AWQ = replace(FACTS, expert_format="awq", moe_runner="auto")
MXFP4 = replace(FACTS, expert_format="mxfp4", moe_runner="marlin")
INT4 = replace(FACTS, expert_format="int4", moe_runner="triton")


@pytest.fixture
def quantised(made, monkeypatch):
    """The start of a daemon with a GPU whose model has other facts."""

    async def start(facts, *words, **settings):
        monkeypatch.setattr("ktd.app.starts.read_facts", lambda *_, **__: facts)
        starts, _ = made(device="cuda", gpu_experts_ratio=0.1, sglang_args=words, **settings)
        with capture_logs() as logs:
            spec = (await starts.next_start()).spec
        return spec, [line["note"] for line in logs if "long prefills" in line["event"]]

    return start


@pytest.mark.parametrize(
    ("facts", "words", "device", "expected"),
    [
        (FACTS, (), "cuda", False),
        (FACTS, ("--moe-runner-backend", "auto"), "cuda", False),
        (INT4, (), "cuda", False),
        (INT4, ("--moe-runner-backend=auto",), "cuda", True),
        (INT4, ("--moe-runner-backend", "marlin"), "cuda", True),
        (AWQ, (), "cuda", True),
        (AWQ, (), "cpu", False),
        (MXFP4, (), "cuda", True),
    ],
)
def test_four_bits_are_repacked_where_marlin_computes_them(facts, words, device, expected):
    """What a user gave SGLang comes before what ktd gives it."""
    assert repacks(facts, words, device) is expected


def test_sglang_chooses_where_triton_has_not_the_format():
    """The engine asks for Triton by itself, and a host without a GPU has no runner."""
    assert runner_words(AWQ, "cuda") == ("--moe-runner-backend", "auto")
    assert runner_words(INT4, "cuda") == runner_words(FACTS, "cuda") == ()
    assert runner_words(AWQ, "cpu") == ()
    # By itself SGLang takes one for gpt-oss that mixes experts.
    assert runner_words(MXFP4, "cuda") == ("--moe-runner-backend", "marlin")


async def test_prefills_of_repacked_experts_stream(quantised):
    """SGLang is told to choose its runner before what a user tells it."""
    spec, notes = await quantised(AWQ, "--log-level", "error")
    assert spec.prefill_threshold is not None
    assert notes == []
    at = spec.sglang_args.index("--moe-runner-backend")
    assert spec.sglang_args[at + 1] == "auto"
    assert spec.sglang_args[-2:] == ("--log-level", "error")


async def test_prefills_of_w4a16_stream_on_either_runner(quantised):
    """Ktd gives it none: by itself the engine takes Triton's."""
    spec, notes = await quantised(INT4)
    assert spec.prefill_threshold is not None
    assert "--moe-runner-backend" not in spec.sglang_args
    assert notes == []
    spec, notes = await quantised(INT4, "--moe-runner-backend", "auto")
    assert spec.prefill_threshold is not None
    assert notes == []


@pytest.mark.parametrize(
    ("facts", "settings", "why"),
    [
        (
            FACTS,
            {"host_memory": "mmap"},
            "--host-memory mmap: the GPU cannot read experts from the page cache",
        ),
        (MXFP4, {}, "mxfp4 experts: streaming them was not tried on a GPU yet"),
    ],
)
async def test_people_are_told_where_long_prefills_do_not_stream(quantised, facts, settings, why):
    """In one line."""
    spec, notes = await quantised(facts, **settings)
    assert spec.prefill_threshold is None
    assert notes == [f"{why}, so the CPU computes those of long prefills too."]
