"""`ktd stats`: what the router chose, and where it was computed."""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import TYPE_CHECKING

from ktd.cli.arguments import add_command, positive_float
from ktd.cli.connection import client_of
from ktd.cli.exit_codes import ExitCode
from ktd.cli.heat import HeatRow, heat_strip, legend
from ktd.cli.quantities import bytes_text, count_text, share_text
from ktd.cli.stats_json import counts_by_layer, hit_rate, prefill_by_layer, stats_json
from ktd.cli.tables import facts, table
from ktd.cli.terminal import Terminal, out

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ktd.cli.arguments import Subparsers
    from ktd.client import LayerCounts, Placement, StatsSnapshot

_LAYER_COLUMNS = 34  # what the table's other columns take


def add_parser(subparsers: Subparsers) -> None:
    """Adds `ktd stats`."""
    parser = add_command(
        subparsers,
        "stats",
        summary="what the router chose and where it was computed",
        description=(
            "Prints how often each expert was chosen, since the engine's start or in the last so\n"
            "many seconds, and the share that GPU slots computed, for prefill and decode apart.\n"
            "With --json: the placement's JSON with lists 'counts', 'prefill_counts' and\n"
            "'decode_counts' per layer (index is expert id), totals since the start, the window\n"
            "and, with --rates, pairs per second with the past fading (half-life one minute)."
        ),
        examples=[
            "ktd stats",
            "ktd stats --window 60",
            "ktd stats --kind decode",
            "ktd stats --json | jq .gpu_hit_rate",
            "ktd stats --rates --json | jq .rates.layers[0].decode_cpu",
        ],
    )
    parser.add_argument(
        "--window",
        type=positive_float,
        metavar="SECONDS",
        help="count the last so many seconds, at most 300, instead of since the engine's start",
    )
    parser.add_argument(
        "--kind",
        choices=("all", "prefill", "decode"),
        default="all",
        help="which work the table shows (default: all)",
    )
    parser.add_argument(
        "--rates",
        action="store_true",
        help="show pairs per second now, with the past fading, instead of counts",
    )


def run(args: argparse.Namespace, _rest: list[str]) -> int:
    """Asks and prints."""
    placement, stats = asyncio.run(_ask(args))
    if getattr(args, "json", False):
        out().line(json.dumps(stats_json(placement, stats)))
    else:
        _print(out(), args, placement, stats)
    return ExitCode.OK


async def _ask(args: argparse.Namespace) -> tuple[Placement, StatsSnapshot]:
    async with client_of(args) as client:
        stats = await client.stats(window=args.window, with_rates=args.rates)
        return await client.placement(), stats


def _moving(stats: StatsSnapshot) -> str:
    """What it took of the scheduler since the start; nothing where nothing was moved."""
    totals = stats.totals
    if not totals.move_calls:
        return ""
    milliseconds = totals.move_call_time.ToNanoseconds() / 1e6 / totals.move_calls
    calls = "call" if totals.move_calls == 1 else "calls"
    return (
        f"{count_text(totals.move_calls)} control {calls} since the start, "
        f"{milliseconds:.2f} ms of the scheduler each"
    )


def _print(
    terminal: Terminal, args: argparse.Namespace, placement: Placement, stats: StatsSnapshot
) -> None:
    totals, window = stats.totals, stats.window
    decoded = window.gpu_pairs + window.cpu_pairs
    prefilled = window.prefill_gpu_pairs + window.prefill_cpu_pairs
    facts(
        terminal,
        [
            ("window", f"last {window.length.ToSeconds()} s" if args.window else ""),
            ("GPU hit rate", f"{share_text(window.gpu_hit_rate)} of {count_text(decoded)} pairs"),
            ("  in prefill", _rate(window.prefill_hit_rate, prefilled)),
            ("  in decode", _rate(window.decode_hit_rate, decoded - prefilled)),
            (
                "tokens",
                (
                    f"{count_text(window.prefill_tokens)} in "
                    f"{count_text(window.prefill_steps)} prefill steps, "
                    f"{count_text(window.decode_tokens)} in "
                    f"{count_text(window.decode_steps)} decode steps"
                ),
            ),
            (
                "bytes",
                (
                    f"{bytes_text(totals.cpu_weight_bytes)} of weights read by the CPU, "
                    f"{bytes_text(totals.swap_bytes)} copied into slots"
                    f"{' since the start' if args.window else ''}"
                ),
            ),
            ("moving", _moving(stats)),
        ],
    )
    numbers = _rates_of(stats, args.kind) if args.rates else _counts_of(stats, args.kind)
    sides = {layer.layer: layer for layer in stats.layers}
    room = max(16, terminal.width - _LAYER_COLUMNS)
    rows = [
        (
            str(layer.layer),
            f"{len(layer.gpu_experts)}/{layer.slots}",
            count_text(round(sum(numbers.get(layer.layer, ())))),
            _hit_rate(sides.get(layer.layer)),
            heat_strip(
                terminal,
                HeatRow(
                    layer.layer,
                    numbers.get(layer.layer, [0] * layer.num_experts),
                    frozenset(layer.gpu_experts),
                ),
                room=room,
            ),
        )
        for layer in placement.layers
    ]
    terminal.line()
    unit = "pairs/s" if args.rates else "pairs"
    table(terminal, ("layer", "slots", unit, "hit rate", "experts"), rows, "rrrrl")
    terminal.line(legend(terminal))


def _counts_of(stats: StatsSnapshot, kind: str) -> Mapping[int, Sequence[float]]:
    """Pairs per layer and expert of one kind of work, or of both."""
    both, prefill = counts_by_layer(stats), prefill_by_layer(stats)
    if kind == "all":
        return both
    if kind == "prefill":
        return prefill
    return {
        layer: [count - one for count, one in zip(counts, prefill[layer], strict=True)]
        for layer, counts in both.items()
    }


def _rates_of(stats: StatsSnapshot, kind: str) -> Mapping[int, Sequence[float]]:
    """Pairs per second per layer and expert."""
    found = {}
    for layer in stats.rates.layers:
        prefill = zip(layer.prefill_gpu, layer.prefill_cpu, strict=True)
        decode = zip(layer.decode_gpu, layer.decode_cpu, strict=True)
        sums = {"prefill": list(map(sum, prefill)), "decode": list(map(sum, decode))}
        sums["all"] = list(map(sum, zip(sums["prefill"], sums["decode"], strict=True)))
        found[layer.layer] = sums[kind]
    return found


def _rate(share: float, pairs: int) -> str:
    return f"{share_text(share)} of {count_text(pairs)}" if pairs else ""


def _hit_rate(counts: LayerCounts | None) -> str:
    rate = hit_rate(counts) if counts is not None else None
    return share_text(rate) if rate is not None else "-"
