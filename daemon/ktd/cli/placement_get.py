"""`ktd placement get`: which experts are in GPU slots."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

from ktd.cli.arguments import add_command
from ktd.cli.connection import client_of
from ktd.cli.exit_codes import ExitCode
from ktd.cli.id_ranges import id_ranges
from ktd.cli.placement_json import placement_json
from ktd.cli.tables import table
from ktd.cli.terminal import Terminal, out

if TYPE_CHECKING:
    import argparse

    from ktd.cli.arguments import Subparsers
    from ktd.client import Placement


def add_parser(subparsers: Subparsers) -> None:
    """Adds `ktd placement get`."""
    add_command(
        subparsers,
        "get",
        summary="which experts are in GPU slots",
        examples=["ktd placement get", "ktd placement get --json > placement.json"],
    )


def run(args: argparse.Namespace) -> int:
    """Asks and prints."""
    placement = asyncio.run(_ask(args))
    if getattr(args, "json", False):
        out().line(json.dumps(placement_json(placement)))
    else:
        _print(out(), placement)
    return ExitCode.OK


async def _ask(args: argparse.Namespace) -> Placement:
    async with client_of(args) as client:
        return await client.placement()


def _print(terminal: Terminal, placement: Placement) -> None:
    slots = sum(layer.slots for layer in placement.layers)
    used = sum(len(layer.gpu_experts) for layer in placement.layers)
    total = sum(layer.num_experts for layer in placement.layers)
    terminal.line(
        f"revision {placement.revision} ({placement.origin}): "
        f"{used} of {total} experts in {slots} GPU slots"
    )
    rows = [
        (
            str(layer.layer),
            f"{len(layer.gpu_experts)}/{layer.slots}",
            str(layer.num_experts),
            id_ranges(layer.gpu_experts) or "-",
        )
        for layer in placement.layers
    ]
    table(terminal, ("layer", "slots", "experts", "on the GPU"), rows, "rrrl")
