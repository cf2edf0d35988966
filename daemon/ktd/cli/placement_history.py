"""`ktd placement history`: what was applied, newest first."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC
from typing import TYPE_CHECKING

from ktd.cli.arguments import add_command, positive_int
from ktd.cli.connection import client_of
from ktd.cli.exit_codes import ExitCode
from ktd.cli.message_json import message_json
from ktd.cli.quantities import bytes_text
from ktd.cli.tables import table
from ktd.cli.terminal import Terminal, out

if TYPE_CHECKING:
    import argparse

    from ktd.cli.arguments import Subparsers
    from ktd.client import HistoryEntry

_DEFAULT_COUNT = 20


def add_parser(subparsers: Subparsers) -> None:
    """Adds `ktd placement history`."""
    parser = add_command(
        subparsers,
        "history",
        summary="what was applied, newest first",
        examples=["ktd placement history", "ktd placement history -n 5 --json"],
    )
    parser.add_argument(
        "-n",
        dest="count",
        type=positive_int,
        default=_DEFAULT_COUNT,
        metavar="N",
        help=f"at most this many entries (default: {_DEFAULT_COUNT})",
    )


def run(args: argparse.Namespace) -> int:
    """Asks and prints."""
    entries = asyncio.run(_ask(args))
    if getattr(args, "json", False):
        out().line(json.dumps({"entries": [message_json(entry) for entry in entries]}))
    else:
        _print(out(), entries)
    return ExitCode.OK


async def _ask(args: argparse.Namespace) -> list[HistoryEntry]:
    async with client_of(args) as client:
        return await client.history(args.count)


def _print(terminal: Terminal, entries: list[HistoryEntry]) -> None:
    if not entries:
        terminal.line("Nothing was applied yet.")
        return
    rows = [
        (
            str(entry.revision),
            f"{entry.time.ToDatetime(UTC).astimezone():%Y-%m-%d %H:%M:%S}",
            entry.origin,
            str(entry.moves),
            bytes_text(entry.bytes),
            entry.actor,
            "yes" if entry.undoable else "",
        )
        for entry in entries
    ]
    header = ("revision", "time", "origin", "moves", "copied", "by", "undo leads here")
    table(terminal, header, rows, "rllrrll")
