"""From what a user asks for to replays: one policy or strategy, KT's rule and the clairvoyant."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ktd.errors import ConfigError
from ktd.placement.budget import budget_of
from ktd.placement.cost import default_costs
from ktd.placement.model import ModelShape
from ktd.placement.strategies.base import Evidence, even_split
from ktd.placement.strategies.registry import live_placement, strategy_names
from ktd.policy.adaptive import Adaptive
from ktd.policy.base import DECISION_TOKENS
from ktd.policy.dynamic import Dynamic
from ktd.policy.settings import AdaptiveSettings
from ktd.simulate.clairvoyant import Clairvoyant, clairvoyant, prefix
from ktd.simulate.replay import Machine, Replay, Replayed
from ktd.stats.trace import coactivation

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from ktd.simulate.workload import Workload

OFF, DYNAMIC, ADAPTIVE = "off", "dynamic", "adaptive"
POLICIES = (OFF, DYNAMIC, ADAPTIVE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What to replay.

    Attributes:
        policy: ``off``, ``dynamic``, ``adaptive``, or the name of a strategy, which then places at
            the start of each phase from that phase's own statistics.
        budget: Share of the experts in slots, split evenly over the layers.
        copy_cost: Pairs that a copy costs ``adaptive``; None: as the settings say.
        settings: Its other figures.
        every: Tokens between its decisions.
        prefill_chunk: Tokens of a prefill for ``dynamic``, where the trace does not say.
        threshold: Its ``--kt-gpu-prefill-token-threshold``.
    """

    policy: str
    budget: float
    machine: Machine
    copy_cost: float | None = None
    settings: AdaptiveSettings = field(default_factory=AdaptiveSettings)
    every: int = DECISION_TOKENS
    prefill_chunk: int = 512
    threshold: int = 512


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What came of it, beside what was possible and what KT's rule does."""

    question: Question
    workload: Workload
    slots: tuple[int, ...]
    replayed: Replayed
    dynamic: Replayed
    best: Clairvoyant
    facts: dict[str, float]

    @property
    def ratio(self) -> float:
        """Hit rate over the clairvoyant's; 1 where that is 0, as without slots."""
        return self.replayed.hit_rate / self.best.hit_rate if self.best.hit_rate else 1.0

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        machine, replayed = self.question.machine, self.replayed
        moved = self.best.moves * machine.expert_bytes
        return {
            "policy": self.question.policy,
            "budget": self.question.budget,
            "slots_per_layer": list(self.slots),
            "tokens": replayed.tokens,
            "hit_rate": replayed.hit_rate,
            "clairvoyant_hit_rate": self.best.hit_rate,
            "hit_rate_ratio": self.ratio,
            "static_hit_rate": self.best.static_hit_rate,
            "moves": replayed.moves,
            "clairvoyant_moves": self.best.moves,
            "moved_bytes": replayed.moved_bytes,
            "clairvoyant_moved_bytes": moved,
            "moved_share_per_1000_tokens_after_2000": self.late_share,
            "expert_bytes": machine.expert_bytes,
            "tokens_per_second": replayed.tokens_per_second,
            "phases": [
                {
                    "name": phase.name,
                    "tokens": phase.tokens,
                    "hit_rate": rate,
                    "clairvoyant_hit_rate": best,
                }
                for phase, rate, best in zip(
                    self.workload.phases, replayed.hit_rates, self.best.hit_rates, strict=True
                )
            ],
            "dynamic": {
                "threshold": self.question.threshold,
                "hit_rate": self.dynamic.hit_rate,
                "moves": self.dynamic.moves,
                "moved_bytes": self.dynamic.moved_bytes,
                "tokens_per_second": self.dynamic.tokens_per_second,
                "phases": list(self.dynamic.hit_rates),
            },
            "facts": self.facts,
        }

    @property
    def late_share(self) -> float:
        """Experts moved per 1,000 tokens after the first 2,000, as a share of all experts."""
        total = self.workload.num_layers * self.workload.num_experts
        rest = (self.replayed.tokens - 2000) / 1000
        return self.replayed.late_moves / total / rest if rest > 0 else 0.0


def machine_of(device: str, expert_bytes: int, copy_rate: float | None) -> Machine:
    """A machine with the default rates of ``"cpu"`` or ``"cuda"``."""
    return Machine(expert_bytes, default_costs(device), copy_rate)


def answer(
    workload: Workload,
    question: Question,
    on_progress: Callable[[int], None] = lambda _tokens: None,
) -> Answer:
    """Replays.

    Raises:
        ConfigError: there is no such policy or strategy, or the budget is out of range.
    """
    if question.policy not in (*POLICIES, *strategy_names()):
        raise ConfigError(
            f"There is no policy or strategy {question.policy!r}; choose one of "
            f"{', '.join((*POLICIES, *strategy_names()))}."
        )
    layers, experts = workload.num_layers, workload.num_experts
    budget = budget_of(layers, experts, ratio=question.budget)
    slots = tuple(even_split(layers, experts, budget.slots))
    best = clairvoyant(workload, slots)
    facts: dict[str, float] = {}

    def fresh(report: Callable[[int], None] = lambda _tokens: None) -> Replay:
        return Replay(workload, slots, question.machine, report)

    # Prefill comes in chunks of that size; a longer threshold is one that nothing reaches.
    dynamic = fresh().policy(
        Dynamic(slots, question.threshold), every=question.prefill_chunk, prefill=True
    )
    if question.policy == ADAPTIVE:
        settings = question.settings
        if question.copy_cost is not None:
            settings = replace(settings, copy_cost=question.copy_cost)
        policy = Adaptive(slots, experts, settings)
        replayed = fresh(on_progress).policy(policy, every=question.every)
        facts = dict(policy.facts())
    elif question.policy == DYNAMIC:
        replayed = dynamic
    else:
        replayed = fresh(on_progress).sets(_sets(workload, question, slots))
    return Answer(question, workload, slots, replayed, dynamic, best, facts)


def _sets(
    workload: Workload, question: Question, slots: tuple[int, ...]
) -> list[NDArray[np.bool_]]:
    """What ``off`` and strategies have in slots in each phase."""
    experts = workload.num_experts
    if question.policy == OFF:
        return [prefix(slots, experts)] * len(workload.phases)
    shape = ModelShape(
        tuple(range(workload.num_layers)), experts, slots, question.machine.expert_bytes
    )
    sets = []
    for number, phase in enumerate(workload.phases):
        evidence = Evidence(
            counts=workload.counts(number).tolist(),
            pairs=coactivation(phase.ids, experts) if question.policy == "coactivation" else None,
            experts_per_token=float((phase.ids >= 0).sum(axis=2).mean()),
            expert_bytes=question.machine.expert_bytes,
            costs=question.machine.costs,
        )
        chosen = live_placement(question.policy, shape, evidence=evidence).experts
        mapped = np.zeros((workload.num_layers, experts), bool)
        for layer, ids in enumerate(chosen):
            mapped[layer, list(ids)] = True
        sets.append(mapped)
    return sets
