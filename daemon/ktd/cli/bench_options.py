"""What the commands below `ktd bench` share: their options, starting servers, and printing."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ktd.bench.servers import RunningServer, ServerPlan, server_plans
from ktd.cli.arguments import nonnegative_int, positive_int
from ktd.cli.exit_codes import ExitCode
from ktd.cli.terminal import err
from ktd.errors import ConfigError

if TYPE_CHECKING:
    from ktd.cli.arguments import Parser, Subparsers


def add_action(
    actions: Subparsers, name: str, summary: str, description: str, examples: str
) -> Parser:
    """A command with MODEL and ``--json``."""
    parser = actions.add_parser(
        name,
        help=summary,
        description=f"{description} Options that bench does not know go to `ktd serve`.",
        epilog="examples:\n" + "".join(f"  {line}\n" for line in examples.splitlines()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", type=Path, help="folder of the model")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--running",
        metavar="SOCKET",
        type=Path,
        help="measure the daemon at this control socket instead of starting one",
    )
    return parser


def add_against(parser: argparse.ArgumentParser) -> None:
    """``--against`` and what goes with it."""
    parser.add_argument(
        "--against",
        metavar="SERVER",
        help="also measure another server: stock (unmodified SGLang), or the address of one",
    )
    parser.add_argument(
        "--against-args",
        metavar="WORDS",
        default="",
        help="options for stock, such as '--cpu-offload-gb 40'",
    )


def add_seed(parser: argparse.ArgumentParser) -> None:
    """``--seed``."""
    parser.add_argument(
        "--seed", metavar="N", type=nonnegative_int, default=0, help="of what is random (0)"
    )


def plans_of(args: argparse.Namespace, rest: list[str]) -> list[ServerPlan]:
    """Checks what is wrong before a server starts.

    Raises:
        ConfigError: The model is not there, or what to compare with is unknown.
    """
    if not args.model.is_dir():
        raise ConfigError(f"{args.model} is not a folder; name a downloaded model")
    against = getattr(args, "against", None)
    if against is not None and against != "stock" and "://" not in against:
        raise ConfigError(
            f"--against {against} is neither stock nor an address such as http://127.0.0.1:8080"
        )
    # Ending early must end the servers too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(ExitCode.INTERRUPTED))
    words = shlex.split(getattr(args, "against_args", ""))
    if args.running is not None and rest:
        raise ConfigError(
            f"--running measures a daemon as it is, so {rest[0]} has no effect; leave it out"
        )
    return server_plans(args.model, rest, against, words, running=args.running)


@contextlib.contextmanager
def started(plan: ServerPlan) -> Iterator[RunningServer]:
    """Says that it is starting, and starts it."""
    progress(f"starting {plan.what}")
    with plan.start() as server:
        yield server


def progress(text: str) -> None:
    """A line on standard error, at once."""
    terminal = err()
    terminal.line(text)
    terminal.stream.flush()


def counts(text: str) -> tuple[int, ...]:
    """``1,8,32``, for ``type=``."""
    return tuple(dict.fromkeys(positive_int(count) for count in text.split(",")))


counts.__name__ = "list of numbers"  # argparse names the type in "invalid … value"

Print = Callable[[str], None]
