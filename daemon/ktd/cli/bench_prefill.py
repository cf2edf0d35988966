"""`ktd bench prefill`: how fast a long prompt is read."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ktd.bench.prefill import measure_prefill
from ktd.bench.prompts import Prompts
from ktd.cli.arguments import positive_int
from ktd.cli.bench_options import (
    add_action,
    add_against,
    add_seed,
    counts,
    plans_of,
    progress,
    started,
)
from ktd.cli.bench_request import results_json, say_weights
from ktd.cli.exit_codes import ExitCode
from ktd.cli.terminal import out

if TYPE_CHECKING:
    from ktd.cli.arguments import Subparsers


def add_parser(actions: Subparsers) -> None:
    """Adds ``bench prefill``."""
    parser = add_action(
        actions,
        "prefill",
        "tokens per second while a long prompt is read",
        "Sends prompts of N random tokens and takes the time to the first token.",
        "ktd bench prefill MODEL --tokens 8192 --gpu-experts-ratio 0.1\n"
        "ktd bench prefill MODEL --tokens 512,2048,8192 --against stock",
    )
    add_against(parser)
    add_seed(parser)
    parser.add_argument(
        "--tokens", metavar="N", type=counts, default=(2048,), help="of a prompt (default: 2048)"
    )
    parser.add_argument("--runs", metavar="N", type=positive_int, default=5, help="default: 5")


def run(args: argparse.Namespace, rest: list[str]) -> int:
    """One server after the other."""
    results = []
    for plan in plans_of(args, rest):
        prompts = Prompts.of_model(args.model, args.seed)
        with started(plan) as server:
            results += [
                measure_prefill(server, prompts, tokens=tokens, runs=args.runs, progress=progress)
                for tokens in args.tokens
            ]
    if args.json:
        out().line(results_json(args, rest, results))
        return ExitCode.OK
    say_weights(args.model)
    for result in results:
        for name, rate in result.tokens_per_second.items():
            first = result.first_token_ms[name].text(0)
            out().line(
                f"{name:14} {result.prompt_tokens:6} tokens  {rate.text(0)} tokens/s, first token "
                f"{first} ms"
            )
    return ExitCode.OK
