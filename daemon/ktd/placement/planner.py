"""Works out a plan: the moves to a goal, what they cost, and what they are worth."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ktd.placement.forecast import Forecaster
from ktd.placement.goals import StrategyGoal, origin_of, resolve
from ktd.placement.model import ModelShape, bytes_of, diff
from ktd.placement.plans import LIFETIME, Plan, RestartOffer
from ktd.placement.strategies.registry import initial_placement

if TYPE_CHECKING:
    from ktd.placement.goals import Goal
    from ktd.placement.model import Experts, Placement
    from ktd.placement.strategies.base import Choice, Evidence


@dataclass(frozen=True, slots=True)
class Situation:
    """What a plan starts from: ``mapped`` is what is in slots, ``now`` in Unix seconds."""

    current: Placement
    mapped: Experts
    evidence: Evidence
    now: float


def plan_of(goal: Goal, situation: Situation) -> Plan:
    """The plan to ``goal``.

    Raises:
        KtdError: ``goal`` cannot be met, see :func:`~ktd.placement.goals.resolve`.
    """
    current, evidence = situation.current, situation.evidence
    shape = current.shape
    choice = resolve(goal, shape, current.experts, lambda: evidence)
    moves = diff(shape, situation.mapped, choice.experts)
    size = bytes_of(shape, moves)
    forecaster = Forecaster(evidence, situation.mapped)
    costs_note = forecaster.note()
    return Plan(
        id=secrets.token_hex(6),
        etag=current.etag,
        expire_time=situation.now + LIFETIME,
        shape=shape,
        experts=choice.experts,
        origin=origin_of(goal),
        moves=moves,
        bytes=size,
        copy_seconds=size / forecaster.costs.link_bytes_per_second,
        before=forecaster.of(situation.mapped),
        after=forecaster.of(choice.experts),
        restart=_restart_offer(goal, shape, evidence, forecaster),
        notes=(*choice.notes, costs_note) if costs_note else choice.notes,
    )


def restarted(strategy: str, shape: ModelShape, evidence: Evidence) -> tuple[ModelShape, Choice]:
    """The slots per layer that ``strategy`` would give an engine with as many slots, and its start.

    Raises:
        StrategyUnknown, StrategyFailed: see :func:`initial_placement`.
    """
    choice = initial_placement(
        strategy, len(shape.moe_layers), shape.num_experts, shape.total_slots, evidence=evidence
    )
    slots = tuple(map(len, choice.experts))
    return replace(shape, slots=slots), choice


def _restart_offer(
    goal: Goal, shape: ModelShape, evidence: Evidence, forecaster: Forecaster
) -> RestartOffer | None:
    """What a restart would gain, or None where the slots are as the strategy would have them."""
    if not isinstance(goal, StrategyGoal):
        return None
    wanted, choice = restarted(goal.strategy, shape, evidence)
    if wanted.slots == shape.slots:
        return None
    return RestartOffer(wanted, choice.experts, forecaster.of(choice.experts))
