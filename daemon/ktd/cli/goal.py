"""The target of `ktd placement plan` and `apply`: a strategy, or a file."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ktd.cli.arguments import UsageError
from ktd.cli.placement_json import parse_target
from ktd.config.strategies import OWN
from ktd.errors import InvalidArgument

if TYPE_CHECKING:
    import argparse


@dataclass(frozen=True, slots=True)
class Goal:
    """Where to go.

    Attributes:
        title: What to call it.
        strategy: A strategy's name; None if ``layers`` is set.
        layers: GPU experts per layer.
        partial: Layers that ``layers`` does not name stay as they are.
    """

    title: str
    strategy: str | None = None
    layers: dict[int, list[int]] | None = None
    partial: bool = False


def add_goal(parser: argparse.ArgumentParser, *, plans: bool) -> None:
    """Adds `--strategy`, `--file`, `--partial` and, if asked, `--plan`; one of them is needed."""
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument(
        "--strategy", metavar="NAME", help=f"one of {', '.join(OWN)}, or another package's"
    )
    group.add_argument(
        "--file",
        metavar="PATH",
        help="JSON as 'ktd placement get --json' prints it; '-' reads standard input",
    )
    if plans:
        group.add_argument("--plan", metavar="ID", help="a plan that 'ktd placement plan' printed")
    parser.add_argument(
        "--partial",
        action="store_true",
        help="with --file: layers that it does not name stay as they are",
    )


def check_partial(args: argparse.Namespace) -> None:
    """Returns unless `--partial` would be read by nothing.

    Raises:
        UsageError: it came without a file.
    """
    if args.partial and args.file is None:
        raise UsageError("--partial needs --file: strategies and plans name every layer")


def goal_of(args: argparse.Namespace) -> Goal:
    """The goal that the arguments name.

    Raises:
        InvalidArgument: the file cannot be read or is not of the right form.
        UsageError: see :func:`check_partial`.
    """
    check_partial(args)
    if args.strategy:
        return Goal(args.strategy, strategy=args.strategy)
    source = "standard input" if args.file == "-" else args.file
    try:
        text = sys.stdin.read() if args.file == "-" else Path(args.file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        what = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise InvalidArgument(f"{source} cannot be read: {what}") from error
    return Goal(source, layers=parse_target(text, source), partial=args.partial)
