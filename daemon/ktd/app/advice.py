"""When the engine runs out of memory: the three levers, each with a value that would fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ktd.app.sglang_words import CHUNK_FLAG, DEFAULT_CHUNK, DEFAULT_KV_TOKENS, count_given
from ktd.model.device_memory import device_bytes
from ktd.model.facts import ModelFacts
from ktd.model.memory import ENGINE_BYTES, RANK_BYTES, HostMemory, fitting_ratio

_SMALLEST_CHUNK = 256
_SMALLEST_TOKENS = 2048
# Of device memory, for activations, graphs and what the driver takes.
_DEVICE_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class Present:
    """What the engine that ran out of memory was given."""

    facts: ModelFacts
    slots: int
    ranks: int
    device: str
    sglang_args: Sequence[str]


def memory_advice(present: Present) -> str:
    """One sentence with the tutorial's three levers, each with a value below the present one."""
    facts = present.facts
    ratio = present.slots / facts.total_experts
    fits = min(fitting_ratio(facts, _room(present)), _lower(ratio))
    chunk = max(
        _SMALLEST_CHUNK,
        count_given(present.sglang_args, CHUNK_FLAG, DEFAULT_CHUNK) // 2,
    )
    tokens = max(
        _SMALLEST_TOKENS,
        count_given(present.sglang_args, "--max-total-tokens", DEFAULT_KV_TOKENS) // 2,
    )
    return (
        f"Use less memory: --kt-gpu-experts-ratio {fits:g} (now {ratio:.2g}) for fewer experts in "
        f"slots, {CHUNK_FLAG} {chunk} for smaller prefill buffers, or "
        f"--max-total-tokens {tokens} for a smaller KV cache."
    )


def _lower(ratio: float) -> float:
    """A little less than now, in steps of 1 %: the present one did not fit."""
    return max(0.0, int(ratio * 80) / 100)


def _room(present: Present) -> int:
    """Bytes for slots."""
    facts = present.facts
    if present.device == "cpu":
        engine = ENGINE_BYTES + present.ranks * RANK_BYTES
        return HostMemory.read().available - facts.own_expert_bytes - facts.other_bytes - engine
    return int(_DEVICE_SHARE * device_bytes(present.ranks, free=False)) - facts.other_bytes
