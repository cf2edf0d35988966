"""A plan for people and for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ktd.cli.moves import moves_json, print_moves
from ktd.cli.placement_json import layer_json
from ktd.cli.quantities import bytes_text, number_text, plural, seconds_text, share_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ktd.cli.terminal import Terminal
    from ktd.client import Forecast, Plan


def print_plan(terminal: Terminal, title: str, plan: Plan, *, diff: bool = False) -> None:
    """What would move, what that costs, and what it is worth."""
    if plan.moves:
        took = plan.copy_duration.ToNanoseconds() / 1e9
        terminal.line(
            f"{title}: {plural(len(plan.moves), 'move')}, {bytes_text(plan.bytes)} to copy"
            f" in about {_took(took)}"
        )
    else:
        terminal.line(f"{title}: nothing to move, the placement is that one already")
    before, after = plan.before, plan.after
    if before.hit_rate or after.hit_rate:
        terminal.line(
            f"GPU hit rate on the recent statistics: {share_text(before.hit_rate)} now, "
            f"{share_text(after.hit_rate)} then"
        )
    if before.tokens_per_second:
        terminal.line(
            f"Predicted decode: {number_text(before.tokens_per_second)} tokens/s now, "
            f"{number_text(after.tokens_per_second)} then; the CPU reads "
            f"{bytes_text(before.cpu_bytes_per_step)} a step now, "
            f"{bytes_text(after.cpu_bytes_per_step)} then"
        )
    terminal.line(f"Memory: {bytes_text(plan.slot_bytes)} of slots, as now")
    if plan.HasField("restart"):
        _print_restart(terminal, plan)
    print_notes(terminal, plan.notes)
    if diff:
        _print_diff(terminal, plan)
    else:
        print_moves(terminal, plan.moves)


def print_notes(terminal: Terminal, notes: Iterable[str]) -> None:
    """Sentences that an operator should read."""
    for note in notes:
        terminal.line(f"{terminal.styled('!', 'yellow')} {note}")


def plan_json(plan: Plan) -> dict[str, Any]:
    """A plan for programs; ``layers`` is the placement that it leads to."""
    return {
        "plan": plan.name,
        "etag": plan.etag,
        "expire_time": plan.expire_time.ToJsonString(),
        "bytes": plan.bytes,
        "copy_seconds": plan.copy_duration.ToNanoseconds() / 1e9,
        "hit_rate_before": plan.hit_rate_before,
        "hit_rate_after": plan.hit_rate_after,
        "before": _forecast_json(plan.before),
        "after": _forecast_json(plan.after),
        "slot_bytes": plan.slot_bytes,
        "restart": {
            "layers": [layer_json(layer) for layer in plan.restart.layers],
            **_forecast_json(plan.restart.forecast),
        }
        if plan.HasField("restart")
        else None,
        "notes": list(plan.notes),
        "moves": moves_json(plan.moves),
        "layers": [layer_json(layer) for layer in plan.layers],
    }


def _print_restart(terminal: Terminal, plan: Plan) -> None:
    offer = plan.restart
    slots = [layer.slots for layer in offer.layers]
    worth = ""
    if offer.forecast.hit_rate:
        worth = f": {share_text(offer.forecast.hit_rate)} GPU hit rate"
        if offer.forecast.tokens_per_second:
            worth += f", {number_text(offer.forecast.tokens_per_second)} tokens/s"
    terminal.line(
        f"A restart with the slots it would like ({min(slots)} to {max(slots)} a layer) would "
        f"give more to choose from{worth}; ktd placement apply --restart does that"
    )


def _print_diff(terminal: Terminal, plan: Plan) -> None:
    """Experts of each layer that changes: what leaves, what enters, what stays."""
    leaving: dict[int, list[int]] = {}
    entering: dict[int, list[int]] = {}
    for move in plan.moves:
        if move.HasField("evict"):
            leaving.setdefault(move.layer, []).append(move.evict)
        if move.HasField("load"):
            entering.setdefault(move.layer, []).append(move.load)
    for layer in plan.layers:
        out, come = leaving.get(layer.layer, []), entering.get(layer.layer, [])
        if not out and not come:
            continue
        stay = [expert for expert in layer.gpu_experts if expert not in come]
        terminal.line(f"@@ layer {layer.layer}, {plural(layer.slots, 'slot')} @@")
        for sign, experts, colour in (("-", out, "red"), ("+", come, "green"), (" ", stay, "")):
            if experts:
                line = f"{sign} {' '.join(map(str, sorted(experts)))}"
                terminal.line(terminal.styled(line, colour) if colour else line)


def _forecast_json(forecast: Forecast) -> dict[str, Any]:
    return {
        "hit_rate": forecast.hit_rate,
        "step_seconds": forecast.step_duration.ToNanoseconds() / 1e9,
        "tokens_per_second": forecast.tokens_per_second,
        "cpu_bytes_per_step": forecast.cpu_bytes_per_step,
    }


def _took(seconds: float) -> str:
    return seconds_text(seconds) if seconds >= 1 else f"{number_text(1000 * seconds)} ms"
