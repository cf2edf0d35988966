"""Joins policies to the engine's counters and to what the daemon was told."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ktd.config.settings import Settings
from ktd.placement.cost_meter import CostMeter
from ktd.policy.counted import Counted
from ktd.policy.options import DYNAMIC, PolicyOptions
from ktd.policy.pace import DEFAULT_COPY_RATE
from ktd.stats.hub import StatsHub

# SGLang's own, where its command line does not say (0.5.23: a CPU host, a small GPU).
_DEFAULT_CHUNK = 4096
_LEAST_EXPERT_BYTES = 1 << 20
_CHUNK_FLAG = "--chunked-prefill-size"


@dataclass(frozen=True, slots=True)
class HubCounters:
    """Satisfies ``ktd.policy.counted.Counters``."""

    hub: StatsHub

    def steps(self) -> int:
        """Forward passes so far."""
        return self.hub.steps()

    def read(self) -> Counted | None:
        """Everything, over both tiers."""
        if not self.hub.ready or (sample := self.hub.sample()) is None:
            return None
        return Counted(
            engine_id=sample.engine_id,
            decode=np.asarray(sample.decode.sum(axis=-1)),
            prefill=np.asarray(sample.prefill.sum(axis=-1)),
            decode_tokens=sample.decode_tokens,
            prefill_tokens=sample.prefill_tokens,
            decode_steps=sample.decode_steps,
            prefill_steps=sample.prefill_steps,
        )


def copy_pairs(meter: CostMeter, expert_bytes: int) -> float:
    """(token, expert) pairs that the CPU computes while one expert is copied; 0: not measured.

    A pair reads an expert's weights, so this is the CPU's rate over that of the copies. A swap of
    small experts takes the time of its calls and says nothing of the rate.
    """
    costs = meter.costs()
    measured = {"cpu_bytes_per_second", "link_bytes_per_second"} <= set(costs.measured)
    if not measured or expert_bytes < _LEAST_EXPERT_BYTES:
        return 0.0
    return costs.cpu_bytes_per_second / costs.link_bytes_per_second


def options_of(settings: Settings) -> PolicyOptions:
    """The policy that the daemon begins with."""
    name = settings.placement_policy
    if name is None:
        name = DYNAMIC if settings.enable_dynamic_expert_update else "off"
    return PolicyOptions(
        name=name,
        copy_cost=settings.policy_copy_cost,
        copy_rate=settings.policy_copy_rate or DEFAULT_COPY_RATE,
        threshold=settings.gpu_prefill_token_threshold,
    )


def never_fires(settings: Settings, options: PolicyOptions) -> str:
    """Why ``dynamic`` can never move anything, in one sentence; empty if it can, or does not run.

    A prefill longer than SGLang's chunk comes in chunks, and each is judged alone.
    """
    if options.name != DYNAMIC:
        return ""
    if options.threshold is None:
        return (
            "The policy dynamic never moves anything: no prefill is long enough without "
            "--kt-gpu-prefill-token-threshold TOKENS."
        )
    chunk, source = chunk_size(settings.sglang_args)
    if 0 < chunk < options.threshold:
        return (
            f"The policy dynamic can never fire: a prefill has at most {chunk} tokens at once "
            f"({source}), and --kt-gpu-prefill-token-threshold is {options.threshold}; lower it, "
            f"or raise {_CHUNK_FLAG}."
        )
    return ""


def chunk_size(sglang_args: tuple[str, ...]) -> tuple[int, str]:
    """Tokens of a prefill at once, and who says so; below 1: not chunked."""
    found, source = _DEFAULT_CHUNK, "SGLang's default"
    for position, word in enumerate(sglang_args):
        name, equals, attached = word.partition("=")
        if name != _CHUNK_FLAG:
            continue
        following = sglang_args[position + 1] if position + 1 < len(sglang_args) else ""
        text = attached if equals else following
        if text.lstrip("-").isdigit():
            found, source = int(text), f"{_CHUNK_FLAG} {text}"
    return found, source
