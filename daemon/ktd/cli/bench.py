"""`ktd bench`: measures on this host, against a baseline of the same run."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ktd.bench.decode import measure_decode
from ktd.bench.passthrough import measure_passthrough
from ktd.bench.servers import ktd_server, stock_server
from ktd.cli import bench_kernels
from ktd.cli.exit_codes import ExitCode
from ktd.cli.terminal import err
from ktd.errors import ConfigError

if TYPE_CHECKING:
    from ktd.cli.arguments import Subparsers

_PROMPT = "And it came to pass in those days, that"


def add_parser(subparsers: Subparsers) -> None:
    """Adds ``bench decode``, ``bench passthrough`` and ``bench kernels``."""
    parser = subparsers.add_parser(
        "bench",
        help="measure",
        description="Measures on this host. Options that bench does not know go to `ktd serve`.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  ktd bench decode models/ktd-tiny --against stock --gpu-experts-ratio 0\n"
        "  ktd bench passthrough models/ktd-tiny --runs 21 --json\n"
        "  ktd bench kernels --format bf16 --tokens 1,4,16",
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(dest="action", metavar="WHAT", required=True)
    decode = actions.add_parser(
        "decode", help="tokens per second of one stream", allow_abbrev=False
    )
    decode.add_argument(
        "--against", choices=["stock"], help="also run unmodified SGLang, and print the ratio"
    )
    passthrough = actions.add_parser(
        "passthrough", help="what the HTTP front adds to SGLang's own app", allow_abbrev=False
    )
    for action, runs in ((decode, 5), (passthrough, 15)):
        action.add_argument("model", metavar="MODEL", type=Path, help="folder of the model")
        action.add_argument("--tokens", type=int, default=128, help="per run (default: 128)")
        action.add_argument("--runs", type=int, default=runs, help=f"default: {runs}")
        action.add_argument("--prompt", default=_PROMPT, help="default: %(default)r")
        action.add_argument("--json", action="store_true", help="print JSON")
    bench_kernels.add_parser(actions)


def run(args: argparse.Namespace, rest: list[str]) -> int:
    """Starts the servers, measures, prints."""
    if args.action == "kernels":
        return bench_kernels.run(args, rest)
    if not args.model.is_dir():
        raise ConfigError(f"{args.model} is not a folder; name a downloaded model")
    for name in ("tokens", "runs"):
        if getattr(args, name) < (2 if name == "tokens" else 1):
            raise ConfigError(f"--{name} {getattr(args, name)} is too few")
    # Ending early must end the servers too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(ExitCode.INTERRUPTED))
    return _decode(args, rest) if args.action == "decode" else _passthrough(args, rest)


def _decode(args: argparse.Namespace, rest: list[str]) -> int:
    with contextlib.ExitStack() as stack:
        _progress("starting ktd")
        servers = [stack.enter_context(ktd_server(args.model, rest))]
        if args.against:
            _progress("starting unmodified SGLang")
            gpu = Path("/dev/nvidia0").exists()
            servers.append(stack.enter_context(stock_server(args.model, [], gpu=gpu)))
        result = measure_decode(
            servers, prompt=args.prompt, tokens=args.tokens, runs=args.runs, progress=_progress
        )
    if args.json:
        _print(json.dumps(result.as_json()))
        return ExitCode.OK
    for name, rate in result.tokens_per_second.items():
        _print(f"{name:14} {rate.text()} tokens/s")
    if result.ratio is not None:
        _print(f"{'ratio':14} {result.ratio.text(2)}")
    return ExitCode.OK


def _passthrough(args: argparse.Namespace, rest: list[str]) -> int:
    _progress("starting ktd")
    with ktd_server(args.model, rest) as server:
        if server.upstream is None:
            raise ConfigError("the server has no application behind its front")
        result = measure_passthrough(
            server.endpoint,
            server.upstream,
            prompt=args.prompt,
            tokens=args.tokens,
            runs=args.runs,
            progress=_progress,
        )
    if args.json:
        _print(json.dumps(result.as_json()))
        return ExitCode.OK
    _print(f"front adds to the first token   {result.first_token_ms.text(2)} ms")
    _print(f"front adds to each token        {result.per_token_ms.text(3)} ms")
    _print(f"SGLang's own first token        {result.direct_first_token_ms.text(2)} ms")
    _print(f"SGLang's own time per token     {result.direct_per_token_ms.text(2)} ms")
    return ExitCode.OK


def _progress(text: str) -> None:
    err().line(text)


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
