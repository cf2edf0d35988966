"""`ktd stats`: what the router chose since the engine's start, and where it was computed."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

from ktd.cli.arguments import add_command
from ktd.cli.connection import client_of
from ktd.cli.exit_codes import ExitCode
from ktd.cli.heat import HeatRow, heat_strip, legend
from ktd.cli.placement_json import counts_by_layer, stats_json
from ktd.cli.quantities import bytes_text, count_text, share_text
from ktd.cli.tables import facts, table
from ktd.cli.terminal import Terminal, out

if TYPE_CHECKING:
    import argparse

    from ktd.cli.arguments import Subparsers
    from ktd.client import LayerCounts, Placement, StatsSnapshot

_LAYER_COLUMNS = 34  # what the table's other columns take


def add_parser(subparsers: Subparsers) -> None:
    """Adds `ktd stats`."""
    add_command(
        subparsers,
        "stats",
        summary="what the router chose and where it was computed",
        description=(
            "Prints how often each expert was chosen since the engine's start (prefill included),\n"
            "and the share that GPU slots computed. With --json: the placement's JSON with a list\n"
            "'counts' per layer (index is expert id), 'gpu_hit_rate' and totals."
        ),
        examples=["ktd stats", "ktd stats --json | jq .gpu_hit_rate"],
    )


def run(args: argparse.Namespace, _rest: list[str]) -> int:
    """Asks and prints."""
    placement, stats = asyncio.run(_ask(args))
    if getattr(args, "json", False):
        out().line(json.dumps(stats_json(placement, stats)))
    else:
        _print(out(), placement, stats)
    return ExitCode.OK


async def _ask(args: argparse.Namespace) -> tuple[Placement, StatsSnapshot]:
    async with client_of(args) as client:
        return await client.placement(), await client.stats()


def _print(terminal: Terminal, placement: Placement, stats: StatsSnapshot) -> None:
    totals = stats.totals
    pairs = totals.gpu_pairs + totals.cpu_pairs
    facts(
        terminal,
        [
            ("GPU hit rate", f"{share_text(totals.gpu_hit_rate)} of {count_text(pairs)} pairs"),
            (
                "tokens",
                (
                    f"{count_text(totals.prefill_tokens)} in "
                    f"{count_text(totals.prefill_steps)} prefill steps, "
                    f"{count_text(totals.decode_tokens)} in "
                    f"{count_text(totals.decode_steps)} decode steps"
                ),
            ),
            (
                "bytes",
                (
                    f"{bytes_text(totals.cpu_weight_bytes)} of weights read by the CPU, "
                    f"{bytes_text(totals.swap_bytes)} copied into slots"
                ),
            ),
        ],
    )
    counts, sides = counts_by_layer(stats), {layer.layer: layer for layer in stats.layers}
    room = max(16, terminal.width - _LAYER_COLUMNS)
    rows = [
        (
            str(layer.layer),
            f"{len(layer.gpu_experts)}/{layer.slots}",
            count_text(sum(counts.get(layer.layer, ()))),
            _hit_rate(sides.get(layer.layer)),
            heat_strip(
                terminal,
                HeatRow(
                    layer.layer,
                    counts.get(layer.layer, [0] * layer.num_experts),
                    frozenset(layer.gpu_experts),
                ),
                room=room,
            ),
        )
        for layer in placement.layers
    ]
    terminal.line()
    table(terminal, ("layer", "slots", "pairs", "hit rate", "experts"), rows, "rrrrl")
    terminal.line(legend(terminal))


def _hit_rate(counts: LayerCounts | None) -> str:
    if counts is None:
        return "-"
    on_gpu, on_cpu = sum(counts.gpu), sum(counts.cpu)
    return share_text(on_gpu / (on_gpu + on_cpu)) if on_gpu + on_cpu else "-"
