"""`ktd bench table`: throughput by share of experts in slots and by strategy."""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ktd.bench.prompts import Prompts
from ktd.bench.table.cells import ResultFile, planned
from ktd.bench.table.measurement import Engines, Load, TableBench
from ktd.bench.table.placements import COLUMNS
from ktd.bench.table.plot import table_svg
from ktd.bench.table.report import Report
from ktd.bench.table.routing import KINDS, LayerSizes, Routing, recorded_routing, zipf_routing
from ktd.cli.arguments import nonnegative_int, positive_float, positive_int
from ktd.cli.bench_options import add_action, add_seed, plans_of, progress
from ktd.cli.bench_request import weights_of
from ktd.cli.exit_codes import ExitCode
from ktd.cli.tables import table
from ktd.cli.terminal import out
from ktd.errors import ConfigError

if TYPE_CHECKING:
    from ktd.cli.arguments import Subparsers

_DESCRIPTION = """\
Measures the table of KTransformers' tutorial: tokens per second at each share of experts in slots,
for each strategy and policy, with routing that stays as it is and with routing that shifts every
500 tokens. One engine is started; a cell is a placement of it. The routing is
drawn beforehand and takes the place of the model's own, so answers have no meaning."""
_HUNDRED = 100
_SHARES = "0,10,20,30,40,50,60,70,80,90,100"


def add_parser(actions: Subparsers) -> None:
    """Adds ``bench table``."""
    parser = add_action(
        actions,
        "table",
        "tokens per second by share of experts in slots and by strategy",
        _DESCRIPTION,
        "ktd bench table MODEL --batch 8 --resume cells.jsonl --markdown t.md --plot t.svg\n"
        "ktd bench table MODEL --ratios 0,25,50 --columns uniform,frequency,adaptive\n"
        "ktd bench table models/ktd-tiny --trace models/routing-trace.npz --stop-after 9",
    )
    add_seed(parser)
    add = parser.add_argument
    add("--ratios", metavar="LIST", type=_ratios, default=_ratios(_SHARES),
        help="shares in percent (default: 0,10,…,100)")  # fmt: skip
    add("--columns", metavar="LIST", type=_names, default=COLUMNS, help=f"of {', '.join(COLUMNS)}")
    add("--routings", metavar="LIST", type=_names, default=KINDS, help=f"of {', '.join(KINDS)}")
    add("--trace", metavar="FILE", type=Path, help="recorded routing (default: Zipf 0.8)")
    add("--checks", metavar="N", type=nonnegative_int, default=3,
        help="cells also measured on engines started at their ratio (3)")  # fmt: skip
    add("--batch", metavar="N", type=positive_int, default=1, help="streams (default: 1)")
    add("--prompt-tokens", metavar="N", type=positive_int, default=64, help="of a prompt (64)")
    add(
        "--output-tokens", metavar="N", type=positive_int, default=448, help="of a completion (448)"
    )
    add("--tokens", metavar="N", type=positive_int, default=500, help="of one run (500)")
    add("--runs", metavar="N", type=positive_int, default=3, help="of a cell (3)")
    add("--rounds", metavar="N", type=positive_int, default=1,
        help="times that each row is measured, its cells in turn: what disturbs a host for minutes "
        "does so to all of them (1); fewer where routing shifts: runs are longer")  # fmt: skip
    add("--settle", metavar="N", type=positive_int, default=50,
        help="tokens before a cell is measured (50)")  # fmt: skip
    add("--settle-policy", metavar="N", type=positive_int, default=500,
        help="the same where a policy runs (500)")  # fmt: skip
    add("--settle-seconds", metavar="S", type=positive_float, default=10.0,
        help="and so long at least there: a policy's moves are paced by time (10)")  # fmt: skip
    add("--learn", metavar="N", type=positive_int, default=8000,
        help="tokens that adaptive reads before its first cell, and remembers (8000: of the drawn "
        "routing that stays, what frequency is given; 2000 at most of one that shifts); ten times "
        "--longest at most")  # fmt: skip
    add("--longest", metavar="S", type=positive_float, default=60.0, help="of a run (60 s)")
    add("--resume", metavar="FILE", type=Path, help="keep cells here, and go on where a run ended")
    add("--stop-after", metavar="MIN", type=positive_float, help="begin no cell after so long")
    add("--markdown", metavar="FILE", type=Path, help="write the tables as Markdown")
    add("--plot", metavar="FILE", type=Path, help="draw them: .svg")


def run(args: argparse.Namespace, rest: list[str]) -> int:
    """Measures what is left, and prints what there is."""
    began = time.monotonic()
    plans_of(args, rest)
    _check(args)
    engines = Engines.of_model(args.model, rest, device=_device(rest))
    sizes = engines.sizes
    load = Load(
        streams=args.batch,
        prompt=args.prompt_tokens,
        output=args.output_tokens,
        tokens=args.tokens,
        runs=args.runs,
        settle=args.settle,
        settle_policy=args.settle_policy,
        settle_seconds=args.settle_seconds,
        learn=args.learn,
        longest=args.longest,
        rounds=args.rounds,
    )
    routings = {kind: _routing(args, kind, sizes) for kind in args.routings}
    request = _request(args, rest, engines, load)
    file = ResultFile(args.resume, request)
    bench = TableBench(
        engines,
        load,
        routings,
        prompts=Prompts.of_model(args.model, args.seed),
        largest=max(args.ratios),
        file=file,
        progress=progress,
        deadline=None if args.stop_after is None else began + 60 * args.stop_after,
    )
    cells = planned(args.routings, args.ratios, args.columns, args.checks)
    done = asyncio.run(bench.run(cells))
    report = Report(
        request, args.routings, args.ratios, args.columns, file.results, routings, args.runs
    )
    if args.markdown:
        args.markdown.write_text(report.markdown(), encoding="utf-8")
    if args.plot:
        args.plot.write_text(table_svg(report), encoding="utf-8")
    if args.json:
        out().line(json.dumps({"complete": done} | report.as_json()))
    else:
        _print(report)
    return ExitCode.OK


def _print(report: Report) -> None:
    out().line(f"weights {report.request['weights']}")
    for kind in report.kinds:
        out().line(f"tokens/s, {report.title(kind)}")
        header = report.header()
        table(out(), header, report.rows(kind), "r" * len(header))
        out().line()
    for line in report.check_lines():
        out().line(line)


def _routing(args: argparse.Namespace, kind: str, sizes: LayerSizes) -> Routing:
    if args.trace is not None:
        return recorded_routing(kind, args.trace, sizes, args.seed)
    return zipf_routing(kind, sizes, args.seed)


def _request(
    args: argparse.Namespace, rest: list[str], engines: Engines, load: Load
) -> dict[str, object]:
    """What was measured; another one's cells are not mixed with these."""
    sizes = engines.sizes
    return {
        "model": args.model.name,
        "weights": weights_of(args.model),
        "experts": f"{sizes.layers} layers of {sizes.experts}, {engines.expert_format}",
        "options": " ".join(rest),
        "routing": "Zipf 0.8" if args.trace is None else args.trace.name,
        "seed": args.seed,
        "largest ratio": max(args.ratios),
        "streams": load.streams,
        "prompt and output tokens": [load.prompt, load.output],
        "tokens and runs": [load.tokens, load.runs],
        "settling tokens": [load.settle, load.settle_policy, load.learn],
        "settling seconds of policies": load.settle_seconds,
        "rounds": load.rounds,
        "statistics where routing shifts": "of a stretch that is over",
    }


def _check(args: argparse.Namespace) -> None:
    if args.running is not None:
        raise ConfigError("ktd bench table starts engines of its own; leave out --running")
    for option, given, known in (
        ("--columns", args.columns, COLUMNS),
        ("--routings", args.routings, KINDS),
    ):
        unknown = [name for name in given if name not in known]
        if unknown or not given:
            raise ConfigError(f"{option} knows {', '.join(known)}, not {', '.join(unknown)}")
    if args.plot is not None and args.plot.suffix != ".svg":
        raise ConfigError(f"--plot {args.plot} is not .svg")
    for path in (args.markdown, args.plot, args.resume):
        if path is not None and not path.absolute().parent.is_dir():
            raise ConfigError(f"there is no folder {path.parent} for {path.name}")


def _device(rest: list[str]) -> str:
    """Where slots will be, as far as it matters for reading the model's folder."""
    words = " ".join(rest).replace("=", " ").split()
    named = words[words.index("--device") + 1] if "--device" in words[:-1] else "auto"
    if named != "auto":
        return named
    return "cuda" if Path("/dev/nvidia0").exists() else "cpu"


def _ratios(text: str) -> tuple[float, ...]:
    """``0,10,100``, for ``type=``: shares from 0 to 1, ascending."""
    found = sorted({float(word) / _HUNDRED for word in text.split(",")})
    if not found or found[0] < 0 or found[-1] > 1:
        raise argparse.ArgumentTypeError(f"{text} is not a list of shares from 0 to 100")
    return tuple(found)


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


_ratios.__name__ = "list of shares"  # argparse names the type in "invalid … value"
