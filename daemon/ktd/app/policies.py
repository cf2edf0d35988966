"""Joins policies to the engine's counters and to what the daemon was told."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ktd.app.sglang_words import CHUNK_FLAG, number_given
from ktd.config.settings import Settings
from ktd.placement.cost import CostModel
from ktd.policy.counted import Counted
from ktd.policy.options import DYNAMIC, PolicyOptions
from ktd.policy.pace import DEFAULT_COPY_RATE, DEFAULT_COPY_RATE_GPU
from ktd.stats.hub import StatsHub

_LEAST_EXPERT_BYTES = 1 << 20
# (token, expert) pairs; docs/results/simulate.md has what other figures would do.
_COPY_COST_GPU = 4.0


@dataclass(frozen=True, slots=True)
class HubCounters:
    """Satisfies ``ktd.policy.counted.Counters``."""

    hub: StatsHub

    def steps(self) -> int:
        """Forward passes so far."""
        return self.hub.steps()

    def move_call_seconds(self) -> float:
        """What moving experts has taken of rank 0's scheduler."""
        return self.hub.move_call_seconds()

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


def copy_pairs(costs: CostModel, expert_bytes: int) -> float:
    """(token, expert) pairs that the CPU computes while one expert is copied; 0: not measured.

    A pair reads an expert's weights, so this is the CPU's rate over that of the copies, where both
    are of the same bytes. A swap of small experts takes the time of its calls and says nothing of
    the rate.
    """
    measured = {"cpu_bytes_per_second", "link_bytes_per_second"} <= set(costs.measured)
    if not measured or expert_bytes < _LEAST_EXPERT_BYTES:
        return 0.0
    return costs.cpu_bytes_per_second / costs.cpu_share / costs.link_bytes_per_second


def usual_copy_cost(device: str) -> float | None:
    """Pairs that a copy costs ``adaptive`` unless it is told; None: it finds out by itself.

    A GPU copies beside everything else, and takes from the memory what computing one pair takes;
    a few more stand for the calls. On the CPU copies take the time of cores that compute.
    """
    return None if device == "cpu" else _COPY_COST_GPU


def options_of(settings: Settings, device: str = "cpu") -> PolicyOptions:
    """The policy that the daemon begins with, where slots are on ``device``."""
    usual = DEFAULT_COPY_RATE if device == "cpu" else DEFAULT_COPY_RATE_GPU
    name = settings.placement_policy
    if name is None:
        name = DYNAMIC if settings.enable_dynamic_expert_update else "off"
    return PolicyOptions(
        name=name,
        copy_cost=settings.policy_copy_cost,
        copy_rate=settings.policy_copy_rate or usual,
        threshold=settings.gpu_prefill_token_threshold,
    )


def never_fires(settings: Settings, options: PolicyOptions, usual_chunk: int) -> str:
    """Why ``dynamic`` can never move anything, in one sentence; empty if it can, or does not run.

    A prefill longer than SGLang's chunk comes in chunks, and each is judged alone.

    Args:
        settings: May say how long a chunk is.
        options: The policy's.
        usual_chunk: What SGLang takes where they do not.
    """
    if options.name != DYNAMIC:
        return ""
    if options.threshold is None:
        return (
            "The policy dynamic never moves anything: no prefill is long enough without "
            "--kt-gpu-prefill-token-threshold TOKENS."
        )
    given = number_given(settings.sglang_args, CHUNK_FLAG)
    chunk = usual_chunk if given is None else given
    if 0 < chunk < options.threshold:
        source = "SGLang's default" if given is None else f"{CHUNK_FLAG} {chunk}"
        return (
            f"The policy dynamic can never fire: a prefill has at most {chunk} tokens at once "
            f"({source}), and --kt-gpu-prefill-token-threshold is {options.threshold}; lower it, "
            f"or raise {CHUNK_FLAG}."
        )
    return ""
