"""`ktd placement undo`: back to the placement before the newest change."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ktd.cli.arguments import add_command
from ktd.cli.connection import client_of
from ktd.cli.exit_codes import ExitCode
from ktd.cli.placement_apply import report
from ktd.cli.question import agreed, someone_is_there
from ktd.cli.swap_watch import committed
from ktd.cli.terminal import out

if TYPE_CHECKING:
    import argparse

    from ktd.cli.arguments import Subparsers
    from ktd.client import Swap


def add_parser(subparsers: Subparsers) -> None:
    """Adds `ktd placement undo`."""
    parser = add_command(
        subparsers,
        "undo",
        summary="go back to the placement before the newest change",
        description=(
            "Goes back to the placement before the newest change by an operator and waits until\n"
            "that is committed; what a policy has moved since goes with it. Doing it again goes\n"
            "one further back; 'ktd placement history' lists them. A policy that runs is paused."
        ),
        examples=["ktd placement undo", "ktd placement undo --yes --json"],
    )
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")
    parser.add_argument("--no-wait", action="store_true", help="start the swap and return")
    parser.add_argument(
        "--etag", help="undo only this state of the placement (default: the one of now)"
    )


def run(args: argparse.Namespace) -> int:
    """Undoes and reports."""
    swap = asyncio.run(_undo(args))
    if swap is None:
        out().line("Nothing was changed.")
        return ExitCode.ERROR
    report(args, swap)
    return ExitCode.OK


async def _undo(args: argparse.Namespace) -> Swap | None:
    async with client_of(args) as client:
        etag = args.etag
        if not args.yes and someone_is_there():
            placement = await client.placement()
            now = f"revision {placement.revision} ({placement.origin})"
            if not agreed(f"Undo {now}?"):
                return None
            etag = etag if etag is not None else placement.etag
        swap = await client.undo(etag=etag)
        return swap if args.no_wait else await committed(client, swap)
