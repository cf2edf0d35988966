"""`ktd bench kernels`: the CPU kernels against the ceilings of this host."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ktd.cli.arguments import UsageError, positive_float, positive_int
from ktd.cli.exit_codes import ExitCode
from ktd.cli.tables import table
from ktd.cli.terminal import err, out
from ktd.errors import ConfigError

if TYPE_CHECKING:
    from ktd.bench.kernels.result import Report
    from ktd.cli.arguments import Subparsers

_DESCRIPTION = """\
Measures how fast this host reads memory and computes, by loops that share nothing with the kernels,
and in turn with them one layer of experts: floor ÷ time is what counts. The floor of a call is the
larger of its experts' bytes ÷ memory bandwidth and its operations ÷ the peak of the best unit.
Needs torch; no engine and no model."""


def add_parser(actions: Subparsers) -> None:
    """Adds ``bench kernels``."""
    parser = actions.add_parser(
        "kernels",
        help="the CPU kernels, against the ceilings of this host",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  ktd bench kernels --list\n"
        "  ktd bench kernels --shape qwen3-30b-a3b --format bf16 --tokens 1,4,16\n"
        "  ktd bench kernels --threads 1,2,4,8,16 --tokens 1 --plot roofline.svg --json",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--shape", metavar="S", type=_names, default=("qwen3-30b-a3b",), help="default: %(default)s"
    )
    parser.add_argument(
        "--format", metavar="F", type=_names, default=(), help="default: all that are computed"
    )
    parser.add_argument(
        "--tokens", metavar="N", type=_counts, default=(1, 4, 16), help="default: 1,4,16"
    )
    parser.add_argument(
        "--isa", metavar="I", type=_names, default=(), help="kernels (default: the best)"
    )
    parser.add_argument(
        "--threads", metavar="N", type=_counts, default=(), help="default: one for each core"
    )
    parser.add_argument(
        "--seconds",
        metavar="S",
        type=positive_float,
        default=2.0,
        help="for each cell (default: 2)",
    )
    parser.add_argument("--no-torch", action="store_true", help="do not measure torch")
    parser.add_argument(
        "--busy-core", action="store_true", help="also with another process on one of the cores"
    )
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw a roofline: .svg or .png")
    parser.add_argument(
        "--markdown", metavar="FILE", type=Path, help="write the tables as Markdown"
    )
    parser.add_argument("--list", action="store_true", help="shapes, kernels and formats; no more")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace, rest: list[str]) -> int:
    """Measures and prints.

    Raises:
        ConfigError: A wrong name or number, or torch is missing.
    """
    if rest:
        raise UsageError(
            f"unrecognized arguments: {' '.join(rest)}; see 'ktd bench kernels --help'"
        )
    # Torch takes seconds to import, and no other command needs it.
    try:
        from ktd.bench.kernels import catalogue, measurement, plot, roofline  # noqa: PLC0415
        from ktd.bench.kernels.host import Host  # noqa: PLC0415
        from ktd.bench.kernels.table import markdown  # noqa: PLC0415
        from ktd.shapes.moe import SHAPES, shape_called  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"ktd bench kernels needs {error.name}, which is not installed: install torch"
        ) from error
    if args.list:
        out().line(f"shapes: {', '.join(SHAPES)}\n{catalogue.listing()}")
        return ExitCode.OK
    if args.plot is not None:
        plot.check_plot(args.plot)
    if args.markdown is not None:
        plot.check_folder(args.markdown, "--markdown")
    request = measurement.Request(
        shapes=tuple(shape_called(name) for name in args.shape),
        formats=args.format,
        isas=args.isa,
        tokens=args.tokens,
        threads=args.threads,
        seconds=args.seconds,
        torch=not args.no_torch,
        busy_core=args.busy_core,
    )
    report = measurement.KernelBench(request, Host.read(), _Progress()).run()
    if args.plot is not None:
        plot.write_plot(roofline.Roofline.of(report), args.plot)
    if args.markdown is not None:
        args.markdown.write_text(markdown(report), encoding="utf-8")
    if args.json:
        sys.stdout.write(json.dumps(report.as_json()) + "\n")
    else:
        _print(report)
    return ExitCode.OK


def _print(report: Report) -> None:
    from ktd.bench.kernels import table as rows  # noqa: PLC0415 - as above

    terminal = out()
    table(terminal, rows.CEILING_HEADER, rows.ceiling_cells(report), rows.CEILING_ALIGN)
    terminal.line()
    table(terminal, rows.HEADER, [rows.cells(row) for row in report.results], rows.ALIGN)
    terminal.line()
    for line in rows.remarks(report):
        terminal.line(line)


class _Progress:
    """Lines on standard error, with the seconds since the beginning."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def __call__(self, text: str) -> None:
        terminal = err()
        terminal.line(f"{time.monotonic() - self._began:6.1f} s  {text}")
        terminal.stream.flush()


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _counts(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(positive_int(count) for count in text.split(",")))


_counts.__name__ = "list of numbers"  # argparse names the type in "invalid … value"
