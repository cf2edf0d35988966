"""`ktd simulate`: replays recorded routing through a policy or a strategy. Needs no daemon."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ktd.cli.arguments import add_json, positive_int
from ktd.cli.exit_codes import ExitCode
from ktd.cli.quantities import count_text, share_text
from ktd.cli.simulate_output import print_answer, write_csv, write_plot
from ktd.cli.terminal import err, out
from ktd.config import values
from ktd.errors import ConfigError
from ktd.simulate.runs import Answer, Question, answer, machine_of
from ktd.simulate.sources import read_workload

if TYPE_CHECKING:
    from ktd.cli.arguments import Subparsers
    from ktd.simulate.workload import Workload

_QUIET_SECONDS = 2.0
_BUDGETS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_DESCRIPTION = """\
Replays a trace of routing and prints how many (token, expert) pairs slots would have computed,
beside what KTransformers' rule (dynamic) gets and what a clairvoyant gets, who knows each phase's
counts and moves at its start only. The arrays of an .npz are phases, in their order; a phase
`mixed`, which takes 500 tokens of each in turn, follows them. Slots are split evenly over the
layers, and a run starts from the lowest ids. Strategies place at the start of each phase from that
phase's own counts. Tokens per second are predicted for one stream with default rates."""


def add_parser(subparsers: Subparsers) -> None:
    """Adds `ktd simulate`."""
    parser = subparsers.add_parser(
        "simulate",
        help="replay recorded routing through a policy",
        description=_DESCRIPTION,
        epilog="examples:\n"
        "  ktd simulate --trace models/routing-trace.npz --budget 0.25 --policy adaptive\n"
        "  ktd simulate --trace F.pt --budget 0.1 --policy adaptive --copy-rate 500M --json\n"
        "  ktd simulate --trace F.npz --policy frequency --plot hits.svg --csv hits.csv",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_json(parser)
    _add_options(parser)


def _add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--trace", metavar="FILE", type=Path, required=True, help=".npz, or .pt of per_token")
    add(
        "--policy",
        metavar="NAME",
        default="adaptive",
        help="off, dynamic, adaptive, or a strategy such as frequency (default: adaptive)",
    )
    add(
        "--budget",
        metavar="SHARE",
        type=float,
        default=0.25,
        help="share of the experts in slots (default: 0.25)",
    )
    add(
        "--copy-cost",
        metavar="PAIRS",
        type=float,
        help="pairs on the CPU that a copy costs adaptive; 0: copies are free (default: what an "
        "expert of average use gets in 1,024 tokens; a daemon with a GPU takes 4)",
    )
    add("--copy-rate", metavar="BYTES", help="bytes per second of copying (default: no limit)")
    add(
        "--experts",
        metavar="N",
        type=positive_int,
        help="experts of a layer (default: as the ids in the trace need)",
    )
    add("--expert-bytes", metavar="BYTES", default="1Mi", help="of one expert (default: 1Mi)")
    add(
        "--device",
        choices=("cpu", "cuda"),
        default="cuda",
        help="whose default rates predict tokens per second (default: cuda)",
    )
    add(
        "--every",
        metavar="TOKENS",
        type=positive_int,
        default=64,
        help="tokens between decisions (default: 64)",
    )
    add(
        "--prefill-chunk",
        metavar="TOKENS",
        type=positive_int,
        default=512,
        help="tokens of a prefill for dynamic, where the trace does not say (default: 512)",
    )
    add(
        "--threshold",
        metavar="TOKENS",
        type=positive_int,
        default=512,
        help="--kt-gpu-prefill-token-threshold for dynamic (default: 512)",
    )
    add("--csv", metavar="FILE", type=Path, help="also write a line per phase and budget")
    add("--plot", metavar="FILE", type=Path, help="also draw hit rate against budget, as SVG")
    add("--budgets", metavar="LIST", help="budgets for --csv and --plot (default: 0.05 to 0.9)")


def run(args: argparse.Namespace, _rest: list[str]) -> int:
    """Replays and prints."""
    question = _question(args)
    budgets = _budgets(args)
    workload = read_workload(args.trace, args.experts)
    bar = _Progress(workload.tokens * (1 + len(budgets)))
    found = answer(workload, question, bar.update)
    others = [_other(workload, question, budget, bar) for budget in budgets]
    bar.done()
    if args.csv:
        write_csv(args.csv, others or [found])
    if args.plot:
        write_plot(args.plot, others)
    if getattr(args, "json", False):
        out().line(json.dumps(found.as_json()))
    else:
        print_answer(out(), args.trace.name, found)
    return ExitCode.OK


def _question(args: argparse.Namespace) -> Question:
    try:
        expert_bytes = int(values.size(args.expert_bytes))
        copy_rate = values.size(args.copy_rate) if args.copy_rate is not None else None
    except ValueError as error:
        raise ConfigError(f"--expert-bytes and --copy-rate must be {error}.") from None
    if not 0 <= args.budget <= 1:
        raise ConfigError(f"--budget is {args.budget:g}; it must be from 0 to 1.")
    if expert_bytes < 1:
        raise ConfigError(f"--expert-bytes {args.expert_bytes} is no size of an expert.")
    if copy_rate is not None and copy_rate <= 0:
        raise ConfigError("--copy-rate must be above 0; leave it out for no limit.")
    return Question(
        policy=args.policy,
        budget=args.budget,
        machine=machine_of(args.device, expert_bytes, copy_rate),
        copy_cost=args.copy_cost,
        every=args.every,
        prefill_chunk=args.prefill_chunk,
        threshold=args.threshold,
    )


def _budgets(args: argparse.Namespace) -> tuple[float, ...]:
    if args.budgets is None:
        return _BUDGETS if args.plot else ()
    try:
        budgets = tuple(float(word) for word in args.budgets.split(","))
    except ValueError:
        raise ConfigError(
            f"--budgets {args.budgets!r} is not a list of numbers such as 0.1,0.25,0.5."
        ) from None
    if not all(0 <= budget <= 1 for budget in budgets):
        raise ConfigError(f"--budgets {args.budgets} has one that is not from 0 to 1.")
    return budgets


def _other(workload: Workload, question: Question, budget: float, bar: _Progress) -> Answer:
    bar.begin_next(workload.tokens)
    return answer(workload, replace(question, budget=budget), bar.update)


class _Progress:
    """A line on standard error once two seconds have gone by; nothing where nobody looks."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._before = 0
        self._begin = self._shown = time.monotonic()
        self._terminal = err()

    def begin_next(self, tokens: int) -> None:
        """One replay of so many tokens has ended."""
        self._before += tokens

    def update(self, tokens: int) -> None:
        """Tokens of this replay that are done."""
        now = time.monotonic()
        if now - self._begin > _QUIET_SECONDS and now - self._shown > 0.2:  # noqa: PLR2004
            self._shown = now
            share = share_text((self._before + tokens) / self._total)
            rate = count_text(round((self._before + tokens) / (now - self._begin)))
            self._terminal.progress(f"replaying: {share}, {rate} tokens/s")

    def done(self) -> None:
        """Clears the line."""
        self._terminal.progress_done()
