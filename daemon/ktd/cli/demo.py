"""`ktd demo`: serves a small model and shows what placement changes, and what it does not."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from ktd.cli.arguments import add_command, positive_int
from ktd.cli.demonstration.daemon import demo_daemon
from ktd.cli.demonstration.play import Findings, Play
from ktd.cli.demonstration.prompts import Prompt, model_path, models_folder, prompts
from ktd.cli.demonstration.stage import Stage
from ktd.cli.exit_codes import ExitCode
from ktd.cli.message_json import enum_name
from ktd.cli.openai_front import Front
from ktd.cli.quantities import plural, seconds_text
from ktd.cli.status import doing
from ktd.cli.terminal import err, out
from ktd.client import KtdClient
from ktd.errors import ConfigError, KtdError

if TYPE_CHECKING:
    import argparse

    from ktd.cli.arguments import Subparsers
    from ktd.cli.demonstration.daemon import DemoDaemon
    from ktd.client import EngineStatus

_RATIO = 0.25
_TOKENS = 48


def add_parser(subparsers: Subparsers) -> None:
    """Adds `ktd demo`."""
    parser = add_command(
        subparsers,
        "demo",
        summary="serve a small model and show what placement does",
        description=(
            "Starts a daemon of its own with a small model, streams a completion for each of\n"
            "three domains, shows which experts each used, lets the strategy 'frequency' place\n"
            "from what it saw while a text is being written, and runs the same prompts again:\n"
            "more work is done in GPU slots, and the text is the same. On a host without a GPU\n"
            "slots are host memory. Everything is stopped and removed at the end."
        ),
        examples=["ktd demo", "ktd demo --model ~/models/Qwen3-30B-A3B --tokens 32"],
    )
    parser.add_argument("--model", metavar="DIR", help="(default: ktd-tiny of the checkout)")
    parser.add_argument(
        "--texts",
        metavar="DIR",
        help="folder with prose.txt, code.txt and docs.txt (default: of the checkout)",
    )
    parser.add_argument(
        "--tokens",
        type=positive_int,
        default=_TOKENS,
        metavar="N",
        help=f"tokens per completion (default: {_TOKENS})",
    )


def run(args: argparse.Namespace, _rest: list[str]) -> int:
    """Runs the demo; 1 if a greedy text changed by more than a tie."""
    model = model_path(args.model)
    texts = prompts(Path(args.texts) if args.texts else models_folder() / "text")
    if find_spec("sglang") is None:
        raise ConfigError(
            "the demo needs SGLang, which is not installed here: pip install 'ktd[engine]'"
        )
    as_json = getattr(args, "json", False)
    stage = Stage(err() if as_json else out())
    # Being told to stop is like Ctrl-C: what was started is stopped on the way out.
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        found = asyncio.run(_demo(stage, model, texts, args.tokens))
    finally:
        signal.signal(signal.SIGTERM, previous)
    if as_json:
        out().line(json.dumps({**found.as_json(), "seconds": round(stage.seconds, 3)}))
    return ExitCode.ERROR if found.changed else ExitCode.OK


def _interrupt(_signal: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


async def _demo(stage: Stage, model: Path, texts: tuple[Prompt, ...], tokens: int) -> Findings:
    stage.heading(f"Serving {model.name}, a quarter of its experts in GPU slots")
    async with demo_daemon(model, ratio=_RATIO) as daemon:
        try:
            status = await _ready(stage, daemon)
            async with KtdClient(daemon.socket) as client:
                front, name = Front(status.http_address), status.model.served_name or "default"
                found = await Play(stage, client, front, name, tokens, texts).run()
        except* KtdError as errors:
            _show_log(stage, daemon)
            raise _first(errors) from None
        stopping = time.monotonic()
    took = seconds_text(time.monotonic() - stopping)
    code = daemon.process.returncode
    if code == ExitCode.OK:
        stage.done(f"stopped cleanly in {took}, {seconds_text(stage.seconds)} in all")
    else:
        stage.note(f"the daemon ended with code {code} after {took}")
    return found


async def _ready(stage: Stage, daemon: DemoDaemon) -> EngineStatus:
    """Waits for the engine, telling a person where it is and a pipe each phase."""
    shown = ""

    def tell(status: EngineStatus) -> None:
        nonlocal shown
        phase = enum_name(status, "phase").lower()
        text = f"{seconds_text(stage.seconds)}  {phase}: {doing(status)}"
        stage.terminal.progress(text)
        if phase != shown and not stage.terminal.interactive:
            stage.note(text)
        shown = phase

    try:
        status = await daemon.ready(tell)
    finally:
        stage.terminal.progress_done()
    model, memory = status.model, status.memory
    stage.done(
        f"ready after {seconds_text(stage.seconds)}: SGLang {status.versions.sglang}, "
        f"{plural(model.num_moe_layers, 'layer')} of {model.num_experts} experts, "
        f"{memory.total_slots} of {memory.total_experts} in slots, "
        f"kernel {status.ranks[0].isa if status.ranks else 'unknown'}"
    )
    return status


def _first(errors: BaseExceptionGroup[KtdError]) -> KtdError:
    """The error to tell; a group has one wherever two things were going on at once."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, KtdError)  # noqa: S101 - the group holds nothing else
    return error


def _show_log(stage: Stage, daemon: DemoDaemon) -> None:
    stage.heading("The daemon's last words")
    for line in daemon.last_lines():
        stage.note(f"  {line}")
