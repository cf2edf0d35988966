"""`ktd bench`: measures on this host, against a baseline of the same run."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ktd.cli import (
    bench_decode,
    bench_kernels,
    bench_passthrough,
    bench_prefill,
    bench_serve,
    bench_swap,
    bench_table,
)

if TYPE_CHECKING:
    from ktd.cli.arguments import Subparsers
    from ktd.cli.commands import CommandModule

_ACTIONS: dict[str, CommandModule] = {
    "decode": bench_decode,
    "prefill": bench_prefill,
    "serve": bench_serve,
    "swap": bench_swap,
    "table": bench_table,
    "passthrough": bench_passthrough,
    "kernels": bench_kernels,
}


def add_parser(subparsers: Subparsers) -> None:
    """Adds ``bench`` and what can be measured."""
    parser = subparsers.add_parser(
        "bench",
        help="measure",
        description="Measures on this host. Options that bench does not know go to `ktd serve`.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  ktd bench decode models/ktd-tiny --against stock --gpu-experts-ratio 0\n"
        "  ktd bench serve MODEL --rate 4 --requests 200\n"
        "  ktd bench swap MODEL --gpu-experts-ratio 0.25 --rate 100\n"
        "  ktd bench kernels --format bf16 --tokens 1,4,16",
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(dest="action", metavar="WHAT", required=True)
    for action in _ACTIONS.values():
        action.add_parser(actions)


def run(args: argparse.Namespace, rest: list[str]) -> int:
    """Measures what was named."""
    return _ACTIONS[args.action].run(args, rest)
