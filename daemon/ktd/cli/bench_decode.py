"""`ktd bench decode`: tokens per second while streams decode."""

from __future__ import annotations

import argparse
import contextlib
from typing import TYPE_CHECKING

from ktd.bench.decode import DecodeResult, measure_decode
from ktd.bench.servers import RunningServer
from ktd.cli.bench_options import add_action, add_against, counts, plans_of, progress, started
from ktd.cli.bench_request import results_json, say_weights
from ktd.cli.exit_codes import ExitCode
from ktd.cli.terminal import out
from ktd.errors import ConfigError

if TYPE_CHECKING:
    from ktd.cli.arguments import Subparsers

_PROMPT = "And it came to pass in those days, that"


def add_parser(actions: Subparsers) -> None:
    """Adds ``bench decode``."""
    parser = add_action(
        actions,
        "decode",
        "tokens per second of one stream or several",
        "Decodes, after the prompt was read; with several streams, while all of them do.",
        "ktd bench decode models/ktd-tiny --against stock --gpu-experts-ratio 0\n"
        "ktd bench decode MODEL --batch 1,8,32 --in-turn --against stock --gpu-experts-ratio 1",
    )
    add_against(parser)
    parser.add_argument(
        "--batch", metavar="N", type=counts, default=(1,), help="streams at a time (default: 1)"
    )
    parser.add_argument(
        "--in-turn",
        action="store_true",
        help="start one server when the other has ended, where both do not fit",
    )
    parser.add_argument("--tokens", type=int, default=128, help="per run (default: 128)")
    parser.add_argument("--runs", type=int, default=5, help="default: 5")
    parser.add_argument("--prompt", default=_PROMPT, help="default: %(default)r")


def run(args: argparse.Namespace, rest: list[str]) -> int:
    """Starts the servers, measures, prints."""
    plans = plans_of(args, rest)
    check_few(args)
    rates: dict[int, dict[str, list[float]]] = {batch: {} for batch in args.batch}
    with contextlib.ExitStack() as together:
        if args.in_turn:
            for plan in plans:
                with started(plan) as server:
                    _measure(args, [server], rates)
        else:
            _measure(args, [together.enter_context(started(plan)) for plan in plans], rates)
    results = [DecodeResult.of(found, batch) for batch, found in rates.items()]
    if args.json:
        out().line(results_json(args, rest, results))
        return ExitCode.OK
    say_weights(args.model)
    for result in results:
        streams = "" if args.batch == (1,) else f"  {result.batch} streams"
        for name, rate in result.tokens_per_second.items():
            out().line(f"{name:14} {rate.text()} tokens/s{streams}")
        if result.ratio is not None:
            out().line(f"{'ratio':14} {result.ratio.text(2)}")
    return ExitCode.OK


def _measure(
    args: argparse.Namespace,
    servers: list[RunningServer],
    rates: dict[int, dict[str, list[float]]],
) -> None:
    for batch in args.batch:
        rates[batch] |= measure_decode(
            servers,
            prompt=args.prompt,
            tokens=args.tokens,
            runs=args.runs,
            progress=progress,
            batch=batch,
        )


def check_few(args: argparse.Namespace) -> None:
    """Refuses what would divide by zero.

    Raises:
        ConfigError: Too few tokens or runs.
    """
    for name in ("tokens", "runs"):
        if getattr(args, name) < (2 if name == "tokens" else 1):
            raise ConfigError(f"--{name} {getattr(args, name)} is too few")
