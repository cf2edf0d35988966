"""`ktd bench swap`: experts move while streams decode."""

from __future__ import annotations

import argparse
import asyncio
import json
from dataclasses import replace
from typing import TYPE_CHECKING

from ktd.bench.decode_load import DecodeLoad
from ktd.bench.link import link_bytes_per_second
from ktd.bench.prompts import Prompts
from ktd.bench.servers import RunningServer
from ktd.bench.swap import CALLS_PER_SECOND, SwapResult, measure_swaps
from ktd.cli.arguments import positive_float, positive_int
from ktd.cli.bench_options import add_action, add_seed, plans_of, progress, started
from ktd.cli.bench_request import request_of, say_weights
from ktd.cli.exit_codes import ExitCode
from ktd.cli.quantities import bytes_text
from ktd.cli.tables import facts
from ktd.cli.terminal import out
from ktd.errors import ConfigError

if TYPE_CHECKING:
    from ktd.cli.arguments import Subparsers

_PROMPT_TOKENS = 32


def add_parser(actions: Subparsers) -> None:
    """Adds ``bench swap``."""
    parser = add_action(
        actions,
        "swap",
        "moving experts while streams decode, and what each costs the other",
        "Moves experts through the placement API; stretches with and without that take turns. "
        "Without --rate, experts are moved with nothing decoded, too.",
        "ktd bench swap MODEL --gpu-experts-ratio 0.25\n"
        "ktd bench swap MODEL --gpu-experts-ratio 0.25 --rate 100 --batch 8 --json",
    )
    add_seed(parser)
    add = parser.add_argument
    add("--rate", metavar="R", type=positive_float, help="experts a second (default: no limit)")
    add(
        "--calls",
        metavar="C",
        type=positive_float,
        help=f"of the API a second, with --rate ({CALLS_PER_SECOND:g})",
    )
    add("--batch", metavar="N", type=positive_int, default=1, help="streams (default: 1)")
    add("--seconds", metavar="S", type=positive_float, default=10.0, help="of a stretch (10)")
    add("--runs", metavar="N", type=positive_int, default=5, help="pairs of stretches (5)")
    add(
        "--tokens",
        metavar="N",
        type=positive_int,
        default=1024,
        help="of a completion; then the stream asks again (1024)",
    )


def run(args: argparse.Namespace, rest: list[str]) -> int:
    """Starts ktd, measures, prints."""
    if args.calls is not None and args.rate is None:
        raise ConfigError(
            f"--calls {args.calls:g} divides a rate of experts into calls; give --rate too."
        )
    (plan,) = plans_of(args, rest)
    prompts = Prompts.of_model(args.model, args.seed)
    link = link_bytes_per_second()
    with started(plan) as server:
        result = asyncio.run(_measure(args, server, prompts))
    result = replace(result, link_bytes_per_second=link)
    if args.json:
        out().line(json.dumps({"request": request_of(args, rest)} | result.as_json()))
    else:
        say_weights(args.model)
        _print(result)
    return ExitCode.OK


async def _measure(args: argparse.Namespace, server: RunningServer, prompts: Prompts) -> SwapResult:
    load = DecodeLoad(
        server.endpoint,
        lambda: prompts.tokens(_PROMPT_TOKENS),
        streams=args.batch,
        tokens=args.tokens,
    )
    # A host that measures kernels alone has no gRPC.
    from ktd.client import KtdClient  # noqa: PLC0415

    async with KtdClient(server.socket) as client:
        with load:
            return await measure_swaps(
                client,
                load,
                seconds=args.seconds,
                pairs=args.runs,
                rate=args.rate,
                calls_per_second=args.calls or CALLS_PER_SECOND,
                progress=progress,
            )


def _print(result: SwapResult) -> None:
    quiet = [pair.quiet for pair in result.pairs]
    busy = [pair.busy for pair in result.pairs]
    rate = result.bytes_per_second
    low, high = rate.low / 1e9, rate.high / 1e9
    size = bytes_text(result.expert_bytes)
    facts(
        out(),
        [
            ("experts moved", f"{result.experts_per_second.text()} a second"),
            ("copied", f"{rate.median / 1e9:.2f} ({low:.2f} to {high:.2f}) GB/s, {size} an expert"),
            ("within swaps", f"{result.swap_bytes_per_second.median / 1e9:.2f} GB/s"),
            ("of the link", _of_link(result)),
            ("nothing decoded", _alone(result)),
            ("slots", f"{result.slots}"),
            ("decode, with ÷ without", result.throughput_ratio.text(3)),
            ("p99 between tokens, with ÷ without", result.p99_ratio.text(2)),
            ("a control call", f"{result.move_call_ms.text(2)} ms of the scheduler"),
            ("longest gap without", f"{max(s.between_tokens.highest for s in quiet):.1f} ms"),
            ("longest gap with", f"{max(s.between_tokens.highest for s in busy):.1f} ms"),
        ],
    )


def _of_link(result: SwapResult) -> str:
    link = result.link_bytes_per_second
    if link is None:
        return ""
    share, within = (
        rate.median / link for rate in (result.bytes_per_second, result.swap_bytes_per_second)
    )
    return (
        f"{share:.3f}, within swaps {within:.3f}; measured before: {link / 1e9:.2f} GB/s from "
        "page-locked memory"
    )


def _alone(result: SwapResult) -> str:
    if result.alone is None:
        return ""
    rate = result.alone.num_bytes / result.alone.seconds
    within = result.alone.num_bytes / result.alone.swap_seconds
    text = f"{rate / 1e9:.2f} GB/s, within swaps {within / 1e9:.2f}"
    if (link := result.link_bytes_per_second) is None:
        return text
    return f"{text}; of the link {rate / link:.3f}, within swaps {within / link:.3f}"
