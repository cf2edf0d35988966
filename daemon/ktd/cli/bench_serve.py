"""`ktd bench serve`: a server under requests that come at random."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ktd.bench.lengths import draw_lengths
from ktd.bench.prompts import Prompts
from ktd.bench.serve import Bounds, ServeResult, measure_serve
from ktd.cli.arguments import positive_float, positive_int
from ktd.cli.bench_options import add_action, add_against, add_seed, plans_of, progress, started
from ktd.cli.bench_request import results_json, say_weights
from ktd.cli.exit_codes import ExitCode
from ktd.cli.tables import table
from ktd.cli.terminal import out
from ktd.errors import ConfigError

if TYPE_CHECKING:
    from ktd.cli.arguments import Subparsers

_LEAST_LENGTH = 16


def add_parser(actions: Subparsers) -> None:
    """Adds ``bench serve``."""
    parser = add_action(
        actions,
        "serve",
        "latency and throughput under requests that come at random",
        "Sends completions through /v1, by a Poisson process, with lengths like ShareGPT's.",
        "ktd bench serve MODEL --rate 4 --requests 200 --gpu-experts-ratio 0.5\n"
        "ktd bench serve MODEL --rate 2 --against stock --against-args '--cpu-offload-gb 40'",
    )
    add_against(parser)
    add_seed(parser)
    add = parser.add_argument
    add("--rate", metavar="R", type=positive_float, default=1.0, help="requests a second (1)")
    add("--requests", metavar="N", type=positive_int, default=100, help="default: 100")
    add(
        "--longest",
        metavar="N",
        type=positive_int,
        default=2048,
        help="prompt and output together, in tokens; longer ones are drawn again (2048)",
    )
    add(
        "--good-first",
        metavar="MS",
        type=positive_float,
        default=2000.0,
        help="time to the first token of a good request, at most (2000 ms)",
    )
    add(
        "--good-token",
        metavar="MS",
        type=positive_float,
        default=100.0,
        help="mean time of its other tokens, at most (100 ms)",
    )


def run(args: argparse.Namespace, rest: list[str]) -> int:
    """One server after the other gets the same requests."""
    plans = plans_of(args, rest)
    if args.longest < _LEAST_LENGTH:
        raise ConfigError(f"--longest {args.longest} is too few for a prompt and an answer")
    lengths = draw_lengths(args.requests, args.seed, longest=args.longest)
    results = []
    for plan in plans:
        with started(plan) as server:
            results.append(
                measure_serve(
                    server.name,
                    server.endpoint,
                    lengths,
                    prompts=Prompts.of_model(args.model, args.seed),
                    rate=args.rate,
                    seed=args.seed,
                    bounds=Bounds(args.good_first / 1e3, args.good_token / 1e3),
                    progress=progress,
                )
            )
    if args.json:
        out().line(results_json(args, rest, results))
    else:
        say_weights(args.model)
        _print(args, results)
    return ExitCode.OK


def _print(args: argparse.Namespace, results: list[ServeResult]) -> None:
    rows = [
        ("requests that ended well", *(f"{r.requests}" for r in results)),
        ("failed", *(f"{r.failed}" for r in results)),
        ("seconds", *(f"{r.seconds:.1f}" for r in results)),
        ("prompt tokens", *(f"{r.prompt_tokens}" for r in results)),
        ("output tokens", *(f"{r.output_tokens}" for r in results)),
        ("output tokens/s", *(f"{r.output_tokens_per_second:.1f}" for r in results)),
        ("first token, p50 ms", *(f"{r.first_token.p50:.1f}" for r in results)),
        ("first token, p99 ms", *(f"{r.first_token.p99:.1f}" for r in results)),
        ("between tokens, p50 ms", *(f"{r.between_tokens.p50:.1f}" for r in results)),
        ("between tokens, p99 ms", *(f"{r.between_tokens.p99:.1f}" for r in results)),
        ("good requests/s", *(f"{r.goodput:.2f}" for r in results)),
        ("good, of those sent", *(f"{100 * r.within_bounds:.1f} %" for r in results)),
    ]
    header = (f"{args.rate:g} requests/s", *(r.server for r in results))
    table(out(), header, rows, "l" + "r" * len(results))
    for result in results:
        if result.complaint:
            out().line(f"{result.server}, first failure: {result.complaint}")
