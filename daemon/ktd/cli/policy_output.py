"""How `ktd policy` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ktd.cli.quantities import bytes_text, plural
from ktd.cli.tables import facts, table

if TYPE_CHECKING:
    from ktd.cli.terminal import Terminal
    from ktd.client import Policy, PolicyCandidate, PolicyExplanation, PolicyMove

_DEFAULT_COST = "default"
_HEADER = ("layer", "out", "in", "uses/token", "gain", "noise", "cost")


def policy_json(policy: Policy) -> dict[str, Any]:
    """For programs; what is not set is null."""
    return {
        "policy": policy.policy,
        "state": policy.state,
        "paused": policy.paused,
        "held_until": policy.held_until.ToJsonString() if policy.HasField("held_until") else None,
        "copy_cost": policy.copy_cost if policy.HasField("copy_cost") else None,
        "copy_rate": policy.copy_rate,
        "threshold": policy.threshold if policy.HasField("threshold") else None,
        "moves": policy.moves,
        "rollbacks": policy.rollbacks,
        "notes": list(policy.notes),
    }


def explanation_json(found: PolicyExplanation) -> dict[str, Any]:
    """For programs."""
    return {
        **policy_json(found.policy),
        "facts": dict(sorted(found.facts.items())),
        "last_moves": [
            {
                "time": one.time.ToJsonString(),
                "policy": one.policy,
                "swap": one.swap,
                "outcome": one.outcome,
                "why": one.why,
                **_figures(one.move),
            }
            for one in found.moves
        ],
        "candidates": [{**_figures(one), "reason": one.reason} for one in found.candidates],
    }


def print_policy(terminal: Terminal, policy: Policy) -> None:
    """As people read it."""
    cost = f"{policy.copy_cost:g} pairs" if policy.HasField("copy_cost") else _DEFAULT_COST
    threshold = (
        f"{policy.threshold} tokens" if policy.HasField("threshold") else "none: it never fires"
    )
    shown = [("policy", policy.policy), ("state", policy.state)]
    if policy.policy != "off":
        shown.append(("copy rate", f"at most {bytes_text(round(policy.copy_rate))}/s"))
    if policy.policy == "adaptive":
        shown.append(("copy cost", cost))
    if policy.policy == "dynamic":
        shown.append(("threshold", threshold))
    shown.append(("moved", f"{plural(policy.moves, 'expert')} since the daemon's start"))
    if policy.rollbacks:
        shown.append(("rolled back", plural(policy.rollbacks, "time")))
    facts(terminal, shown)
    for note in policy.notes:
        terminal.line(f"{terminal.styled('!', 'yellow')} {note}")


def print_explanation(terminal: Terminal, found: PolicyExplanation) -> None:
    """As people read it: facts, last moves, candidates."""
    print_policy(terminal, found.policy)
    if found.facts:
        terminal.line()
        facts(
            terminal,
            [
                (name.replace("_", " "), f"{value:,.4g}")
                for name, value in sorted(found.facts.items())
            ],
        )
    if found.moves:
        terminal.line("\nlast moves")
        rows = [_move_row(one) for one in found.moves]
        table(terminal, ("time (UTC)", *_HEADER, "swap"), rows, "lrrrrrrrl")
        for why in dict.fromkeys(one.why for one in found.moves if one.why):
            terminal.line(f"{terminal.styled('!', 'yellow')} {why}")
    if found.candidates:
        terminal.line("\nbest exchanges now")
        rows = [
            (*_cells(one), one.reason or "comes at the next decision") for one in found.candidates
        ]
        table(terminal, (*_HEADER, "why not"), rows, "rrrrrrrl")


def _move_row(one: PolicyMove) -> tuple[str, ...]:
    stamp = f"{one.time.ToDatetime():%H:%M:%S}"
    return (stamp, *_cells(one.move), one.outcome.lower() or "running")


def _cells(one: PolicyCandidate) -> tuple[str, ...]:
    return (
        str(one.layer),
        str(one.evict) if one.HasField("evict") else "-",
        str(one.load),
        f"{one.score_evict:.3f} → {one.score_load:.3f}",
        f"{one.gain:.0f}",
        f"{one.noise:.0f}",
        f"{one.cost:.0f}",
    )


def _figures(one: PolicyCandidate) -> dict[str, Any]:
    return {
        "layer": one.layer,
        "evict": one.evict if one.HasField("evict") else None,
        "load": one.load,
        "score_evict": one.score_evict,
        "score_load": one.score_load,
        "gain": one.gain,
        "noise": one.noise,
        "cost": one.cost,
    }
