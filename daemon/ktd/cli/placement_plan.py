"""`ktd placement plan`: what a strategy or a file would move. Changes nothing."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from ktd.cli.arguments import add_command
from ktd.cli.connection import client_of
from ktd.cli.exit_codes import ExitCode
from ktd.cli.goal import add_goal, goal_of
from ktd.cli.moves import moves_json, print_moves
from ktd.cli.placement_json import layer_json
from ktd.cli.quantities import bytes_text, plural, share_text
from ktd.cli.terminal import Terminal, out

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
            "Prints what would move, how many bytes that copies, and the GPU hit rate that the\n"
            "statistics so far predict. Changes nothing; the plan can be applied for 60 seconds."
        ),
        examples=[
            "ktd placement plan --strategy frequency",
            "ktd placement plan --file placement.json --json",
        ],
    )
    add_goal(parser, plans=False)


def run(args: argparse.Namespace) -> int:
    """Asks and prints."""
    goal = goal_of(args)
    plan = asyncio.run(_ask(args, goal))
    if getattr(args, "json", False):
        out().line(json.dumps(plan_json(plan)))
    else:
        print_plan(out(), goal.title, plan)
        if plan.moves:
            out().line(f"\nktd placement apply --plan {plan.name}")
    return ExitCode.OK


async def _ask(args: argparse.Namespace, goal: Goal) -> Plan:
    async with client_of(args) as client:
        return await client.plan(strategy=goal.strategy, layers=goal.layers, partial=goal.partial)


def print_plan(terminal: Terminal, title: str, plan: Plan) -> None:
    """A plan as people read it."""
    if plan.moves:
        terminal.line(
            f"{title}: {plural(len(plan.moves), 'move')}, {bytes_text(plan.bytes)} to copy"
        )
    else:
        terminal.line(f"{title}: nothing to move, the placement is that one already")
    if plan.hit_rate_before or plan.hit_rate_after:
        before, after = share_text(plan.hit_rate_before), share_text(plan.hit_rate_after)
        terminal.line(f"GPU hit rate on the statistics so far: {before} now, {after} then")
    for note in plan.notes:
        terminal.line(f"{terminal.styled('!', 'yellow')} {note}")
    print_moves(terminal, plan.moves)


def plan_json(plan: Plan) -> dict[str, Any]:
    """A plan for programs; ``layers`` is the placement that it leads to."""
    return {
        "plan": plan.name,
        "etag": plan.etag,
        "expire_time": plan.expire_time.ToJsonString(),
        "bytes": plan.bytes,
        "hit_rate_before": plan.hit_rate_before,
        "hit_rate_after": plan.hit_rate_after,
        "notes": list(plan.notes),
        "moves": moves_json(plan.moves),
        "layers": [layer_json(layer) for layer in plan.layers],
    }
