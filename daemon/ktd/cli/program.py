"""`ktd`: finds the command, runs it, and turns what goes wrong into a sentence and an exit code."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ktd.cli.arguments import Parser, UsageError, add_json, add_socket
from ktd.cli.commands import COMMANDS, Command
from ktd.cli.exit_codes import ExitCode, exit_code_of
from ktd.cli.terminal import err
from ktd.errors import KtdError
from ktd.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

_DESCRIPTION = """\
Serves Mixture-of-Experts models that do not fit on the GPU: a stock SGLang engine, experts on the
CPU by native kernels, and the hot ones in GPU slots that can be changed while requests run."""

_EPILOG = """\
examples:
  ktd doctor                                 what can this host run?
  ktd serve Qwen/Qwen3-30B-A3B               serve a model
  ktd status                                 is it up?
  ktd chat                                   talk to it
  ktd placement apply --strategy frequency   put the experts it uses most on the GPU
  ktd top                                    watch it

exit codes:
  0 done                          4 the daemon cannot be reached
  1 an error of no other kind     5 conflict: the placement changed, or a swap is running
  2 a wrong argument or setting   6 the engine is not serving now: try again
  3 refused: it cannot be done    130 interrupted

'ktd COMMAND --help' says more about each."""

# Options that may stand before the command; the value says whether one argument follows.
_GLOBAL_OPTIONS = {"--socket": True, "--json": False}


def run(argv: Sequence[str]) -> int:
    """Runs one command line and returns the exit code; nothing but the exit code leaves here."""
    # numpy's library of linear algebra would start a thread for each core at a policy's first
    # product, and they spin for milliseconds after each: on cores that the expert pool has.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        code = _run(list(argv))
        sys.stdout.flush()
    except UsageError as error:
        return _fail(str(error), ExitCode.USAGE)
    except KtdError as error:
        return _fail(str(error), exit_code_of(error))
    except SystemExit as exit_:  # argparse leaves this way after --help and --version.
        return exit_.code if isinstance(exit_.code, int) else ExitCode.OK
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        # The reader has gone (`ktd watch | head`): nobody is left to tell. Python would complain
        # once more when it flushes standard output at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK
    return code


def _run(argv: list[str]) -> int:
    before, name, after = _split(argv)
    command = COMMANDS.get(name) if name is not None else None
    if name is not None and command is None:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean '{close[0]}'?" if close else "see 'ktd --help'"
        raise UsageError(f"there is no command '{name}'; {hint}")
    parser = _parser(command)
    if command is None:
        parser.parse_args(before)
        parser.print_help()
        return ExitCode.USAGE
    args, rest = parser.parse_known_args([command.name, *before, *after])
    if rest and not command.passes_rest:
        raise UsageError(f"unrecognized arguments: {' '.join(rest)}; see '{_prog(args, name)}'")
    return command.load().run(args, rest)


def _parser(chosen: Command | None) -> Parser:
    """The parser of `ktd`, in which only the chosen command is more than a line of help."""
    parser = Parser(
        prog="ktd",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"ktd {__version__}")
    add_socket(parser)
    add_json(parser)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for command in COMMANDS.values():
        if command is chosen:
            command.load().add_parser(subparsers)
        elif find_spec(command.module) is not None:
            subparsers.add_parser(command.name, help=command.summary)
    return parser


def _split(argv: list[str]) -> tuple[list[str], str | None, list[str]]:
    """Options before the command, the command, and what comes after it."""
    index = 0
    while index < len(argv) and argv[index].startswith("-"):
        takes_value = _GLOBAL_OPTIONS.get(argv[index], False)
        index += 2 if takes_value else 1
    if index >= len(argv):
        return argv, None, []
    before = argv[:index]
    if "-h" in before or "--help" in before or "--version" in before:
        return before, None, []
    return before, argv[index], argv[index + 1 :]


def _prog(args: argparse.Namespace, name: str | None) -> str:
    action = getattr(args, "action", None)
    return " ".join(part for part in ("ktd", name, action, "--help") if part)


def _fail(message: str, code: int) -> int:
    terminal = err()
    terminal.line(f"{terminal.styled('ktd:', 'red')} {message}")
    return code
