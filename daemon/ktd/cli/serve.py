"""`ktd serve`: the daemon."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from ktd.config.help import serve_help
from ktd.config.sources import from_process

if TYPE_CHECKING:
    from ktd.cli.arguments import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """Adds `ktd serve`, whose arguments are taken apart by :mod:`ktd.config.flags`."""
    parser = subparsers.add_parser(
        "serve",
        help="serve a model",
        add_help=False,
        # No character starts an option here, so argparse keeps every word and its place.
        prefix_chars="\0",
    )
    parser.add_argument("argv", nargs=argparse.REMAINDER)


def run(args: argparse.Namespace, rest: list[str]) -> int:
    """Runs the daemon until it is told to stop.

    Raises:
        KtdError: what keeps it from starting, in one sentence.
    """
    argv = [*args.argv, *rest]
    before_rest = argv[: argv.index("--")] if "--" in argv else argv
    if "-h" in before_rest or "--help" in before_rest:
        sys.stdout.write(serve_help())
        return 0
    settings = from_process(argv)
    # gRPC's core would write lines of its own between those of the log.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # Imported late: `ktd serve --help` and wrong flags need none of it.
    from ktd.app.daemon import serve  # noqa: PLC0415

    return serve(settings)
