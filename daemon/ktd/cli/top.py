"""`ktd top`: the live monitor, which lives in the package `ktd_tui`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ktd.cli.arguments import add_command
from ktd.cli.connection import socket_of

if TYPE_CHECKING:
    import argparse

    from ktd.cli.arguments import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """Adds `ktd top`."""
    parser = add_command(
        subparsers,
        "top",
        summary="the live monitor",
        description=(
            "Shows the engine, its speed, the GPU hit rate and a live map of layers and experts;\n"
            "applies strategies and undoes them. '?' lists the keys. With --once --json it prints\n"
            "one frame's data and leaves."
        ),
        examples=["ktd top", "ktd top --once --json"],
    )
    parser.add_argument("--once", action="store_true", help="print one frame's data and leave")


def run(args: argparse.Namespace, _rest: list[str]) -> int:
    """Runs the monitor, or prints one frame."""
    # Only this command needs the monitor, and only the live one needs Textual.
    from ktd_tui.launch import launch  # noqa: PLC0415

    as_json = getattr(args, "json", False)
    return launch(socket_of(args), once=args.once, as_json=as_json)
