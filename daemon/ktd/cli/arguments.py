"""The parser that every command shares: one-sentence errors, examples, `--socket`, `--json`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    # The type that add_subparsers returns has no public name.
    Subparsers = argparse._SubParsersAction["Parser"]  # noqa: SLF001


class UsageError(Exception):
    """The command line is wrong; the message is one sentence that says where to read on."""


class Parser(argparse.ArgumentParser):
    """An argument parser that raises instead of printing its usage and exiting."""

    def error(self, message: str) -> NoReturn:
        """Turns argparse's complaint into one sentence.

        Raises:
            UsageError: always.
        """
        raise UsageError(f"{message.rstrip('.')}; see '{self.prog} --help'")


def add_command(
    subparsers: Subparsers,
    name: str,
    *,
    summary: str,
    description: str = "",
    examples: Sequence[str] = (),
    json: bool = True,
) -> Parser:
    """Adds the parser of one command, with `--socket` and (unless told otherwise) `--json`.

    Args:
        subparsers: What the parent's ``add_subparsers`` returned.
        name: The command's name.
        summary: A few words for the parent's list.
        description: What the command does, for its own help; the summary if empty.
        examples: Command lines, each optionally followed by two spaces, ``#`` and a remark.
        json: Whether the command prints something that programs may want.
    """
    parser = subparsers.add_parser(
        name,
        help=summary,
        description=description or f"{summary[0].upper()}{summary[1:]}.",
        epilog="examples:\n" + "\n".join(f"  {line}" for line in examples) if examples else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_socket(parser)
    if json:
        add_json(parser)
    return parser


def add_socket(parser: argparse.ArgumentParser) -> None:
    """Adds `--socket`; absent from the namespace when it is not given."""
    parser.add_argument(
        "--socket",
        metavar="PATH",
        default=argparse.SUPPRESS,
        help="the daemon's gRPC socket (default: $KTD_SOCKET, else the daemon's default)",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Adds `--json`; absent from the namespace when it is not given."""
    parser.add_argument(
        "--json",
        action="store_true",
        default=argparse.SUPPRESS,
        help="print JSON for programs",
    )


def positive_int(text: str) -> int:
    """An integer of at least 1, for ``type=``."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def nonnegative_int(text: str) -> int:
    """An integer of at least 0, for ``type=``."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is below 0")
    return value


def nonnegative_float(text: str) -> float:
    """A number of at least 0, for ``type=``."""
    value = _finite(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value


def positive_float(text: str) -> float:
    """A number above 0, for ``type=``."""
    value = _finite(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is no finite number")
    return value


positive_int.__name__ = "number"  # argparse names the type in "invalid … value".
nonnegative_int.__name__ = "number"
nonnegative_float.__name__ = "number"
positive_float.__name__ = "number"
