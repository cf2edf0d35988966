"""`ktd placement`: the group of commands about which experts are on the GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ktd.cli import (
    placement_apply,
    placement_fit,
    placement_get,
    placement_history,
    placement_plan,
    placement_undo,
)
from ktd.cli.arguments import add_command

if TYPE_CHECKING:
    import argparse

    from ktd.cli.arguments import Subparsers

_ACTIONS = {
    "get": placement_get,
    "plan": placement_plan,
    "apply": placement_apply,
    "undo": placement_undo,
    "history": placement_history,
    "fit": placement_fit,
}


def add_parser(subparsers: Subparsers) -> None:
    """Adds `ktd placement` and its actions."""
    parser = add_command(
        subparsers,
        "placement",
        summary="which experts are on the GPU, and changing that",
        description=(
            "Shows and changes which experts are in GPU slots. Changes happen while requests run\n"
            "and never change an answer: an expert that is in no slot is computed by the CPU."
        ),
        examples=[
            "ktd placement get",
            "ktd placement plan --strategy frequency",
            "ktd placement apply --strategy frequency",
            "ktd placement undo",
        ],
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, title="actions")
    for module in _ACTIONS.values():
        module.add_parser(actions)


def run(args: argparse.Namespace, _rest: list[str]) -> int:
    """Runs the chosen action."""
    return int(_ACTIONS[args.action].run(args))
