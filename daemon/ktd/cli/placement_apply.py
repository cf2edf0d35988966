"""`ktd placement apply`: changes which experts are in GPU slots while requests run."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

from ktd.cli.arguments import UsageError, add_command, nonnegative_float
from ktd.cli.connection import client_of
from ktd.cli.exit_codes import ExitCode
from ktd.cli.goal import Goal, add_goal, check_partial, goal_of
from ktd.cli.placement_restart import restart
from ktd.cli.plan_output import print_notes, print_plan
from ktd.cli.question import agreed, someone_is_there
from ktd.cli.swap_watch import committed, print_swap, swap_json
from ktd.cli.terminal import out

if TYPE_CHECKING:
    import argparse

    from ktd.cli.arguments import Subparsers
    from ktd.client import KtdClient, Swap


def add_parser(subparsers: Subparsers) -> None:
    """Adds `ktd placement apply`."""
    parser = add_command(
        subparsers,
        "apply",
        summary="change the placement while requests run",
        description=(
            "Moves experts into and out of GPU slots and waits until that is committed. On a\n"
            "terminal it shows the plan and asks first. If somebody else changes the placement\n"
            "meanwhile, nothing is done and the exit code is 5. A policy that runs is paused\n"
            "until it is set again. Slots per layer are fixed while an engine runs; --restart\n"
            "drains it and starts it again with as many as the strategy would like in each."
        ),
        examples=[
            "ktd placement apply --strategy frequency",
            "ktd placement apply --strategy latency --restart --drain 60",
            "ktd placement apply --file placement.json --yes",
            "ktd placement get --json | edit | ktd placement apply --file - --json",
        ],
    )
    add_goal(parser, plans=True)
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")
    parser.add_argument("--no-wait", action="store_true", help="start the swap and return")
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything on the daemon, change nothing"
    )
    parser.add_argument(
        "--etag", help="apply only to this state of the placement (default: the one of now)"
    )
    parser.add_argument(
        "--restart",
        action="store_true",
        help="restart the engine with the slots per layer that the strategy would like",
    )
    parser.add_argument(
        "--drain",
        type=nonnegative_float,
        metavar="SECONDS",
        help="with --restart: what requests in flight may take (default: the daemon's setting)",
    )


def run(args: argparse.Namespace) -> int:
    """Applies and reports.

    Raises:
        UsageError: --drain without --restart, or --partial without --file.
    """
    check_partial(args)
    goal = None if args.plan else goal_of(args)
    if args.restart:
        return asyncio.run(restart(args, goal))
    if args.drain is not None:
        raise UsageError("--drain needs --restart; see 'ktd placement apply --help'")
    swap = asyncio.run(_apply(args, goal))
    if swap is None:
        out().line("Nothing was changed.")
        return ExitCode.ERROR
    report(args, swap)
    return ExitCode.OK


def report(args: argparse.Namespace, swap: Swap) -> None:
    """Prints what a swap did, or where it can be watched if nobody waited for it."""
    if getattr(args, "json", False):
        out().line(json.dumps(swap_json(swap)))
    elif getattr(args, "dry_run", False):
        out().line(f"{swap.moves_total} moves would be made; nothing was changed.")
    elif args.no_wait:
        out().line(f"{swap.name} started: {swap.moves_total} moves; watch it with 'ktd top'")
    else:
        print_swap(out(), swap)
    if not getattr(args, "json", False):
        print_notes(out(), swap.notes)


async def _apply(args: argparse.Namespace, goal: Goal | None) -> Swap | None:
    async with client_of(args) as client:
        swap = await _start(client, args, goal)
        if swap is None or args.no_wait or args.dry_run:
            return swap
        return await committed(client, swap)


async def _start(client: KtdClient, args: argparse.Namespace, goal: Goal | None) -> Swap | None:
    """Starts the swap; None if the person at the terminal does not want it."""
    if goal is None:
        return await client.apply(plan=args.plan, etag=args.etag, validate_only=args.dry_run)
    if args.etag is None and not args.yes and not args.dry_run and someone_is_there():
        plan = await client.plan(strategy=goal.strategy, layers=goal.layers, partial=goal.partial)
        print_plan(out(), goal.title, plan)
        if not plan.moves or not agreed("Apply this?"):
            return None
        return await client.apply(plan=plan.name)
    return await client.apply(
        strategy=goal.strategy,
        layers=goal.layers,
        partial=goal.partial,
        etag=args.etag,
        validate_only=args.dry_run,
    )
