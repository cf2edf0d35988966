"""`ktd watch`: statistics as they come, a line at a time."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from ktd.cli.arguments import add_command, positive_float, positive_int
from ktd.cli.connection import client_of
from ktd.cli.exit_codes import ExitCode
from ktd.cli.message_json import message_json
from ktd.cli.quantities import count_text, share_text
from ktd.cli.terminal import Terminal, out
from ktd.errors import EngineNotReady

if TYPE_CHECKING:
    import argparse

    from ktd.cli.arguments import Subparsers
    from ktd.client import StatsSnapshot

_HEADER = (
    *("time", "tokens/s", "GPU hits", "prefill", "decode", "since start"),
    *("decoded", "prefilled", "revision"),
)
_WIDTHS = (8, 8, 8, 7, 7, 11, 8, 9, 8)
_HEADER_EVERY = 20
_SHORTEST = 0.1  # what the API allows


def add_parser(subparsers: Subparsers) -> None:
    """Adds `ktd watch`."""
    parser = add_command(
        subparsers,
        "watch",
        summary="statistics as they come, a line at a time",
        description=(
            "Prints a line per interval until it is interrupted: decode speed, the share of work\n"
            "that GPU slots did in that interval (of all, of prefill, of decode) and since the\n"
            "engine's start, tokens, and the placement's revision. With --json each line is the\n"
            "API's StatsSnapshot: all experts' counts first, then those that changed."
        ),
        examples=["ktd watch", "ktd watch --interval 0.5 --json | jq .window"],
    )
    parser.add_argument(
        "--interval",
        type=positive_float,
        default=1.0,
        metavar="SECONDS",
        help="time between lines (default: 1, at least 0.1)",
    )
    parser.add_argument(
        "-n", dest="count", type=positive_int, metavar="N", help="stop after this many lines"
    )


def run(args: argparse.Namespace, _rest: list[str]) -> int:
    """Prints until the count is reached or it is interrupted."""
    asyncio.run(_watch(args))
    return ExitCode.OK


async def _watch(args: argparse.Namespace) -> None:
    terminal = out()
    as_json = getattr(args, "json", False)
    lines = 0
    async with client_of(args) as client:
        async for stats in client.watch_stats(max(_SHORTEST, args.interval)):
            if as_json:
                terminal.write(json.dumps(message_json(stats)) + "\n")
            else:
                _print(terminal, stats, lines)
            lines += 1
            if args.count is not None and lines >= args.count:
                return
    raise EngineNotReady("the daemon ended the stream: it is shutting down")


def _print(terminal: Terminal, stats: StatsSnapshot, lines: int) -> None:
    # A pipe gets the header once, so that it can be cut off with one `tail`.
    if lines == 0 or (terminal.interactive and lines % _HEADER_EVERY == 0):
        terminal.line(terminal.styled(_row(_HEADER), "dim"))
    window, totals = stats.window, stats.totals
    pairs = window.gpu_pairs + window.cpu_pairs
    prefilled = window.prefill_gpu_pairs + window.prefill_cpu_pairs
    cells: tuple[Any, ...] = (
        f"{stats.time.ToDatetime().replace(microsecond=0):%H:%M:%S}",
        f"{window.decode_tokens_per_second:.1f}",
        share_text(window.gpu_hit_rate) if pairs else "-",
        share_text(window.prefill_hit_rate) if prefilled else "-",
        share_text(window.decode_hit_rate) if pairs - prefilled else "-",
        share_text(totals.gpu_hit_rate),
        count_text(totals.decode_tokens),
        count_text(totals.prefill_tokens),
        str(stats.placement_revision),
    )
    terminal.write(_row(cells) + "\n")


def _row(cells: tuple[str, ...]) -> str:
    return "  ".join(cell.rjust(width) for cell, width in zip(cells, _WIDTHS, strict=True))
