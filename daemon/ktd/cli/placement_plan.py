"""`ktd placement plan`: what a strategy or a file would move. Changes nothing."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

from ktd.cli.arguments import add_command
from ktd.cli.connection import client_of
from ktd.cli.exit_codes import ExitCode
from ktd.cli.goal import add_goal, goal_of
from ktd.cli.plan_output import plan_json, print_plan
from ktd.cli.terminal import out

if TYPE_CHECKING:
    import argparse

    from ktd.cli.arguments import Subparsers
    from ktd.cli.goal import Goal
    from ktd.client import Plan


def add_parser(subparsers: Subparsers) -> None:
    """Adds `ktd placement plan`."""
    parser = add_command(
        subparsers,
        "plan",
        summary="what a strategy or a file would move",
        description=(
            "Prints what would move, how many bytes that copies and how long it takes, and the\n"
            "GPU hit rate and decode speed that recent statistics predict. Changes nothing; the\n"
            "plan can be applied for 60 seconds, in which a policy moves nothing."
        ),
        examples=[
            "ktd placement plan --strategy frequency",
            "ktd placement plan --strategy latency --diff",
            "ktd placement plan --file placement.json --json",
        ],
    )
    add_goal(parser, plans=False)
    parser.add_argument(
        "--diff", action="store_true", help="what leaves, enters and stays, layer by layer"
    )


def run(args: argparse.Namespace) -> int:
    """Asks and prints."""
    goal = goal_of(args)
    plan = asyncio.run(_ask(args, goal))
    if getattr(args, "json", False):
        out().line(json.dumps(plan_json(plan)))
    else:
        print_plan(out(), goal.title, plan, diff=args.diff)
        if plan.moves:
            out().line(f"\nktd placement apply --plan {plan.name}")
    return ExitCode.OK


async def _ask(args: argparse.Namespace, goal: Goal) -> Plan:
    async with client_of(args) as client:
        return await client.plan(strategy=goal.strategy, layers=goal.layers, partial=goal.partial)
