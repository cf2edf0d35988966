"""Replays a workload: what would have been in slots when each token came."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ktd.placement.cost import CostModel
from ktd.policy.base import DECISION_TOKENS, Observation, applied
from ktd.simulate.clairvoyant import prefix

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from ktd.policy.base import Policy
    from ktd.simulate.workload import Chunk, Workload


@dataclass(frozen=True, slots=True)
class Machine:
    """What copies and steps take.

    Attributes:
        expert_bytes: Of one expert.
        costs: For the predicted time of a token.
        copy_rate: Bytes per second that copies may take; None: no limit.
    """

    expert_bytes: int
    costs: CostModel
    copy_rate: float | None = None


@dataclass(frozen=True, slots=True)
class Replayed:
    """What came of it.

    Attributes:
        hit_rates: Share of each phase's pairs that slots computed.
        hit_rate: Those weighted by the phases' tokens.
        moves: Experts copied into slots, ``moved_bytes`` their bytes.
        late_moves: Those after the first 2,000 tokens.
        seconds: Predicted time of all tokens, one stream.
    """

    hit_rates: tuple[float, ...]
    hit_rate: float
    moves: int
    moved_bytes: int
    late_moves: int
    tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Predicted, one stream."""
        return self.tokens / self.seconds if self.seconds else 0.0


_SETTLED = 2000


class Replay:
    """One replay of a workload, from the even prefix.

    Args:
        workload: What the router chose.
        slots: Per layer.
        machine: What things take.
        on_progress: Told tokens done, now and then.
    """

    def __init__(
        self,
        workload: Workload,
        slots: Sequence[int],
        machine: Machine,
        on_progress: Callable[[int], None] = lambda _tokens: None,
    ) -> None:
        self._workload = workload
        self._slots = tuple(slots)
        self._machine = machine
        self._on_progress = on_progress
        self._mapped = prefix(slots, workload.num_experts)
        phases = len(workload.phases)
        self._hits = np.zeros(phases)
        self._pairs = np.zeros(phases)
        self._moves = self._late = self._tokens = 0
        self._seconds = 0.0
        # Bytes that may be copied now.
        self._allowance = 0.0

    def policy(
        self, policy: Policy, *, every: int = DECISION_TOKENS, prefill: bool = False
    ) -> Replayed:
        """Lets ``policy`` decide after every so many tokens; it sees no future.

        Args:
            policy: A fresh one.
            every: Tokens between decisions.
            prefill: What tokens are of which the recording does not say it.
        """
        for chunk in self._workload.chunks(every):
            self._compute(chunk)
            policy.observe(_observation(chunk, prefill=prefill))
            if chunk.last:
                limit = self._limit()
                self._move(applied(self._mapped, policy.decide(self._mapped, limit)))
        return self._replayed()

    def sets(self, sets: Sequence[NDArray[np.bool_]], *, every: int = 4096) -> Replayed:
        """Places ``sets[i]`` at the start of the i-th phase, and leaves it there."""
        phase = -1
        for chunk in self._workload.chunks(every):
            if chunk.phase != phase:
                phase = chunk.phase
                self._move(sets[phase])
            self._compute(chunk)
        return self._replayed()

    def _compute(self, chunk: Chunk) -> None:
        machine = self._machine
        hits = np.where(self._mapped, chunk.counts, 0).sum(axis=1)
        pairs = chunk.counts.sum(axis=1)
        self._hits[chunk.phase] += hits.sum()
        self._pairs[chunk.phase] += pairs.sum()
        per_token = machine.expert_bytes / chunk.tokens
        experts = self._workload.num_experts
        seconds = machine.costs.other_step_seconds + sum(
            machine.costs.layer_seconds(
                float(missed) * per_token,
                float(hit) * per_token,
                on_cpu=slots < experts,
                in_slots=slots > 0,
            )
            for missed, hit, slots in zip(pairs - hits, hits, self._slots, strict=True)
        )
        self._seconds += seconds * chunk.tokens
        if machine.copy_rate is not None:
            # What is not used is lost after a second, but one expert may always be saved for.
            most = max(machine.copy_rate, float(machine.expert_bytes))
            earned = machine.copy_rate * seconds * chunk.tokens
            self._allowance = min(most, self._allowance + earned)
        self._tokens += chunk.tokens
        self._on_progress(self._tokens)

    def _limit(self) -> int | None:
        if self._machine.copy_rate is None:
            return None
        return int(self._allowance // self._machine.expert_bytes)

    def _move(self, mapped: NDArray[np.bool_]) -> None:
        moves = int((mapped & ~self._mapped).sum())
        self._mapped = mapped
        self._moves += moves
        self._late += moves if self._tokens > _SETTLED else 0
        self._allowance -= moves * self._machine.expert_bytes

    def _replayed(self) -> Replayed:
        rates = self._hits / np.maximum(self._pairs, 1)
        tokens = [phase.tokens for phase in self._workload.phases]
        return Replayed(
            hit_rates=tuple(map(float, rates)),
            hit_rate=float(np.average(rates, weights=tokens)),
            moves=self._moves,
            moved_bytes=self._moves * self._machine.expert_bytes,
            late_moves=self._late,
            tokens=self._tokens,
            seconds=self._seconds,
        )


def _observation(chunk: Chunk, *, prefill: bool) -> Observation:
    if not (prefill if chunk.prefill is None else chunk.prefill):
        return Observation(chunk.counts, chunk.tokens)
    return Observation(
        decode=np.zeros_like(chunk.counts),
        decode_tokens=0,
        prefill=chunk.counts,
        prefill_tokens=chunk.tokens,
        prefill_steps=1,
    )
