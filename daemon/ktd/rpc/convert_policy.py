"""Policies ↔ protobuf messages."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ktd.rpc.convert import timestamp
from ktd.rpc.names import swap_name
from ktd.v1 import policy_pb2

if TYPE_CHECKING:
    from ktd.placement.policy_hold import PolicyHold
    from ktd.policy.base import Choice
    from ktd.policy.journal import Entry
    from ktd.policy.loop import Explanation, PolicyLoop


def policy_message(policies: PolicyLoop, hold: PolicyHold) -> policy_pb2.Policy:
    """What runs, and whether an operator goes first."""
    options = policies.options
    held = hold.held_until
    return policy_pb2.Policy(
        policy=options.name,
        state=policies.state(),
        paused=bool(hold.paused),
        held_until=timestamp(held) if held > time.time() else None,
        copy_cost=options.copy_cost,
        copy_rate=options.copy_rate,
        threshold=options.threshold,
        moves=policies.journal.moves,
        rollbacks=policies.journal.rollbacks,
        notes=policies.notes(),
    )


def explanation_message(
    found: Explanation, policy: policy_pb2.Policy
) -> policy_pb2.PolicyExplanation:
    """Moves and candidates with their figures."""
    return policy_pb2.PolicyExplanation(
        policy=policy,
        facts=found.facts,
        moves=map(_move, found.moves),
        candidates=(_candidate(layer, choice) for layer, choice in found.considered),
    )


def _move(entry: Entry) -> policy_pb2.PolicyMove:
    return policy_pb2.PolicyMove(
        time=timestamp(entry.time),
        policy=entry.policy,
        swap=swap_name(entry.swap),
        move=_candidate(entry.layer, entry.choice),
        outcome=entry.outcome,
        why=entry.why,
    )


def _candidate(layer: int, choice: Choice) -> policy_pb2.PolicyCandidate:
    return policy_pb2.PolicyCandidate(
        layer=layer,
        evict=choice.evict,
        load=choice.load,
        score_evict=choice.score_evict,
        score_load=choice.score_load,
        gain=choice.gain,
        noise=choice.noise,
        cost=choice.cost,
        reason=choice.reason,
    )
