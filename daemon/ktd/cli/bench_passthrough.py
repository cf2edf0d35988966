"""`ktd bench passthrough`: what the HTTP front adds."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from ktd.bench.passthrough import measure_passthrough
from ktd.cli.bench_decode import check_few
from ktd.cli.bench_options import add_action, plans_of, progress, started
from ktd.cli.bench_request import request_of, say_weights
from ktd.cli.exit_codes import ExitCode
from ktd.cli.terminal import out
from ktd.errors import ConfigError

if TYPE_CHECKING:
    from ktd.cli.arguments import Subparsers

_PROMPT = "And it came to pass in those days, that"


def add_parser(actions: Subparsers) -> None:
    """Adds ``bench passthrough``."""
    parser = add_action(
        actions,
        "passthrough",
        "what the HTTP front adds to SGLang's own app",
        "Asks the same engine through the front and through SGLang's Unix socket, in turn.",
        "ktd bench passthrough models/ktd-tiny --runs 21 --json",
    )
    parser.add_argument("--tokens", type=int, default=128, help="per run (default: 128)")
    parser.add_argument("--runs", type=int, default=15, help="default: 15")
    parser.add_argument("--prompt", default=_PROMPT, help="default: %(default)r")


def run(args: argparse.Namespace, rest: list[str]) -> int:
    """Starts ktd, measures, prints."""
    (plan,) = plans_of(args, rest)
    check_few(args)
    with started(plan) as server:
        if server.upstream is None:
            raise ConfigError("the server has no application behind its front")
        result = measure_passthrough(
            server.endpoint,
            server.upstream,
            prompt=args.prompt,
            tokens=args.tokens,
            runs=args.runs,
            progress=progress,
        )
    if args.json:
        out().line(json.dumps({"request": request_of(args, rest)} | result.as_json()))
        return ExitCode.OK
    say_weights(args.model)
    out().line(f"front adds to the first token   {result.first_token_ms.text(2)} ms")
    out().line(f"front adds to each token        {result.per_token_ms.text(3)} ms")
    out().line(f"SGLang's own first token        {result.direct_first_token_ms.text(2)} ms")
    out().line(f"SGLang's own time per token     {result.direct_per_token_ms.text(2)} ms")
    return ExitCode.OK
