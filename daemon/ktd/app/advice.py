"""When the engine runs out of memory: the three levers, each with a value that would fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ktd.app.fitting import usual_demand
from ktd.app.sglang_words import CHUNK_FLAG, TOKENS_FLAG
from ktd.model.device_needs import ratio_of, slots_that_fit
from ktd.model.facts import ModelFacts
from ktd.model.memory import ENGINE_BYTES, RANK_BYTES, HostMemory, fitting_ratio

if TYPE_CHECKING:
    from ktd.model.demand import Demand

_SMALLEST_CHUNK = 256
_SMALLEST_TOKENS = 2048


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
    demand = usual_demand(facts, present.sglang_args, device=present.device, ranks=present.ranks)
    ratio = present.slots / facts.total_experts
    fits = min(_fitting(present, demand), _lower(ratio))
    chunk = max(_SMALLEST_CHUNK, demand.chunk // 2)
    tokens = max(_SMALLEST_TOKENS, demand.kv_tokens // 2)
    return (
        f"Use less memory: --kt-gpu-experts-ratio {fits:g} (now {ratio:.2g}) for fewer experts in "
        f"slots, {CHUNK_FLAG} {chunk} for smaller prefill buffers, or "
        f"{TOKENS_FLAG} {tokens} for a smaller KV cache."
    )


def _lower(ratio: float) -> float:
    """A little less than now, in steps of 1 %: the present one did not fit."""
    return max(0.0, int(ratio * 80) / 100)


def _fitting(present: Present, demand: Demand) -> float:
    """A ratio that a start is not refused with.

    On a GPU by all its memory: an engine has just ended, so more than now may be free soon.
    """
    facts = present.facts
    if present.device == "cpu":
        engine = ENGINE_BYTES + present.ranks * RANK_BYTES
        taken = facts.own_expert_bytes + facts.other_bytes + engine
        return fitting_ratio(facts, HostMemory.read().available - taken)
    slots, _ = slots_that_fit(facts, demand, demand.gpu_bytes * demand.ranks)
    return ratio_of(slots, facts.total_experts)
