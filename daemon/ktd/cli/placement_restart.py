"""`ktd placement apply --restart`: the engine starts again with the slots a strategy would like."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from ktd.cli.arguments import UsageError
from ktd.cli.connection import client_of
from ktd.cli.exit_codes import ExitCode
from ktd.cli.message_json import enum_name
from ktd.cli.placement_json import layer_json, placement_json
from ktd.cli.plan_output import print_notes, print_plan
from ktd.cli.question import agreed, someone_is_there
from ktd.cli.status import doing
from ktd.cli.terminal import err, out
from ktd.errors import EngineFailed

if TYPE_CHECKING:
    import argparse

    from ktd.cli.goal import Goal
    from ktd.client import KtdClient, Placement, RestartWithPlacementResponse


async def restart(args: argparse.Namespace, goal: Goal | None) -> int:
    """Asks a person, restarts, waits until requests are served, and reports.

    Raises:
        UsageError: the goal is a file, which says nothing of slots.
        KtdError: the daemon refused, or the engine did not come up with that placement.
    """
    if goal is not None and goal.strategy is None:
        raise UsageError(
            "--restart needs --strategy, or --plan with a plan that a strategy made: a file says "
            "nothing of slots; see 'ktd placement apply --help'"
        )
    async with client_of(args) as client:
        plan = args.plan
        if goal is not None and args.etag is None and not args.yes and someone_is_there():
            shown = await client.plan(strategy=goal.strategy)
            print_plan(out(), goal.title, shown)
            if not agreed("Drain and restart the engine for this?"):
                out().line("Nothing was changed.")
                return ExitCode.ERROR
            plan = shown.name
        answer = await client.restart_with_placement(
            plan=plan,
            strategy=goal.strategy if goal is not None and plan is None else None,
            etag=args.etag,
            drain=args.drain,
            validate_only=args.dry_run,
        )
        if args.dry_run or args.no_wait:
            _report_start(args, answer)
            return ExitCode.OK
        placement = await _served(client)
        _check(placement, answer)
    if getattr(args, "json", False):
        notes = {"notes": list(answer.notes)}
        out().line(json.dumps(placement_json(placement) | notes))
        return ExitCode.OK
    out().line(
        f"{_slots(answer)}; the engine was started again with them and serves; "
        f"revision {placement.revision}"
    )
    print_notes(out(), answer.notes)
    return ExitCode.OK


def _report_start(args: argparse.Namespace, answer: RestartWithPlacementResponse) -> None:
    if getattr(args, "json", False):
        layers = [layer_json(layer) for layer in answer.layers]
        out().line(json.dumps({"layers": layers, "notes": list(answer.notes)}))
        return
    what = (
        "would be given by a restart; nothing was changed"
        if args.dry_run
        else "are what the engine is being started with; 'ktd status --wait' waits for it"
    )
    out().line(f"{_slots(answer)} {what}.")
    print_notes(out(), answer.notes)


def _slots(answer: RestartWithPlacementResponse) -> str:
    slots = [layer.slots for layer in answer.layers]
    return f"{sum(slots)} slots, {min(slots)} to {max(slots)} a layer"


async def _served(client: KtdClient) -> Placement:
    try:
        async for status in client.watch_status():
            phase = enum_name(status, "phase")
            err().progress(f"{phase.lower()}: {doing(status)}")
            if phase == "READY":
                return await client.placement()
            if phase == "FAILED":
                raise EngineFailed(status.message)
    finally:
        err().progress_done()
    raise EngineFailed("the daemon stopped before the engine served again")


def _check(placement: Placement, answer: RestartWithPlacementResponse) -> None:
    if [layer.slots for layer in placement.layers] != [layer.slots for layer in answer.layers]:
        raise EngineFailed(
            "The engine did not start with these slots and runs with those of before; the daemon's "
            "log says why."
        )
