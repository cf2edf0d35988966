"""On which of SGLang's runners a GPU computes experts, as far as a start depends on it."""

from __future__ import annotations

from collections.abc import Sequence

from ktd.app.sglang_words import text_given
from ktd.model.facts import ModelFacts
from ktd.model.quantisation import TRITON

RUNNER_FLAG = "--moe-runner-backend"
_FOUR_BITS = ("int4", "gptq", "awq", "mxfp4")
# tests/sgl/test_gpu_gpt_oss.py[streamed] admits it, which has not run on a GPU.
_UNTRIED_STREAMS = ("mxfp4",)


def runner_words(facts: ModelFacts, device: str) -> tuple[str, ...]:
    """What SGLang is told; nothing where the engine's own choice, Triton, computes the experts."""
    if device == "cpu" or facts.moe_runner == TRITON:
        return ()
    return RUNNER_FLAG, facts.moe_runner


def repacks(facts: ModelFacts, words: Sequence[str], device: str) -> bool:
    """Whether experts are repacked on their way into slots, for SGLang's Marlin runner.

    Args:
        facts: The model.
        words: What a user gave SGLang.
        device: ``"cpu"`` or ``"cuda"``.
    """
    if device == "cpu" or facts.expert_format not in _FOUR_BITS:
        return False
    return (text_given(words, RUNNER_FLAG) or facts.moe_runner) != TRITON


def streams(facts: ModelFacts, device: str) -> bool:
    """Whether long prefills stream: a GPU reads from the host what it computes with, and has.

    Args:
        facts: The model.
        device: ``"cpu"`` or ``"cuda"``.
    """
    return device != "cpu" and facts.gpu_reads_host and facts.expert_format not in _UNTRIED_STREAMS
