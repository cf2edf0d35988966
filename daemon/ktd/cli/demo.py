"""`ktd demo`: serves a small model and shows what placement changes, and what it does not."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ktd.cli.arguments import add_command, positive_int
from ktd.cli.demonstration.completion import Completion, Difference, complete, difference
from ktd.cli.demonstration.daemon import DemoDaemon, demo_daemon
from ktd.cli.demonstration.measurement import Work, settled_stats, work_between
from ktd.cli.demonstration.prompts import Prompt, model_path, models_folder, prompts
from ktd.cli.demonstration.stage import Stage
from ktd.cli.exit_codes import ExitCode
from ktd.cli.message_json import enum_name
from ktd.cli.openai_front import Front
from ktd.cli.quantities import bytes_text, plural, seconds_text
from ktd.cli.status import doing
from ktd.cli.terminal import err, out
from ktd.client import KtdClient
from ktd.errors import ConfigError, KtdError

if TYPE_CHECKING:
    from ktd.cli.arguments import Subparsers
    from ktd.client import EngineStatus, Swap

_RATIO = 0.25
_TOKENS = 64


@dataclass(slots=True)
class _Run:
    """What the demo has found out so far."""

    tokens: int
    before: dict[str, Work] = field(default_factory=dict)
    after: dict[str, Work] = field(default_factory=dict)
    texts: dict[str, Completion] = field(default_factory=dict)
    differences: dict[str, Difference | None] = field(default_factory=dict)
    swap: Swap | None = None
    tokens_during_swap: int = 0


def add_parser(subparsers: Subparsers) -> None:
    """Adds `ktd demo`."""
    parser = add_command(
        subparsers,
        "demo",
        summary="serve a small model and show what placement does",
        description=(
            "Starts a daemon of its own with a small model, streams a completion for each of three\n"
            "domains, shows which experts each used, lets the strategy 'frequency' place from\n"
            "what it saw while a text is being written, and runs the same prompts again: more\n"
            "work is done in GPU slots, and the text is the same. On a host without a GPU slots\n"
            "are host memory. Everything is stopped and removed at the end."
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
    changed = [d for d in found.differences.values() if d is not None and not d.is_tie]
    if as_json:
        out().line(json.dumps(_json(found, time.monotonic() - stage.started)))
    return ExitCode.ERROR if changed else ExitCode.OK


def _interrupt(_signal: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


async def _demo(stage: Stage, model: Path, texts: tuple[Prompt, ...], tokens: int) -> _Run:
    found = _Run(tokens)
    stage.heading(f"Serving {model.name}, a quarter of its experts in GPU slots")
    async with demo_daemon(model, ratio=_RATIO) as daemon:
        try:
            status = await _ready(stage, daemon)
            front = Front(status.http_address)
            async with KtdClient(daemon.socket) as client:
                await _play(stage, client, front, status, texts, found)
        except KtdError:
            _show_log(stage, daemon)
            raise
        stopping = time.monotonic()
    took = seconds_text(time.monotonic() - stopping)
    code = daemon.process.returncode
    if code == 0:
        stage.done(
            f"stopped cleanly in {took}, {seconds_text(time.monotonic() - stage.started)} in all"
        )
    else:
        stage.note(f"the daemon ended with code {code} after {took}")
    return found


async def _ready(stage: Stage, daemon: DemoDaemon) -> EngineStatus:
    shown = ""

    def tell(status: EngineStatus) -> None:
        nonlocal shown
        phase = enum_name(status, "phase").lower()
        elapsed = seconds_text(time.monotonic() - stage.started)
        stage.terminal.progress(f"{elapsed}  {phase}: {doing(status)}")
        if phase != shown and not stage.terminal.interactive:
            stage.note(f"{elapsed}  {phase}: {doing(status)}")
        shown = phase

    try:
        status = await daemon.ready(tell)
    finally:
        stage.terminal.progress_done()
    versions, model = status.versions, status.model
    stage.done(
        f"ready after {seconds_text(time.monotonic() - stage.started)}: SGLang {versions.sglang}, "
        f"{plural(model.num_moe_layers, 'layer')} of {model.num_experts} experts, "
        f"{status.memory.total_slots} of {status.memory.total_experts} in slots, "
        f"kernel {status.ranks[0].isa if status.ranks else 'unknown'}"
    )
    return status


async def _play(
    stage: Stage,
    client: KtdClient,
    front: Front,
    status: EngineStatus,
    texts: tuple[Prompt, ...],
    found: _Run,
) -> None:
    model = status.model.served_name or "default"

    def write(prompt: Prompt) -> Completion:
        stage.begin_text(prompt.domain, prompt.text)
        completion = complete(front, model, prompt.text, found.tokens, stage.piece)
        stage.end_text(completion)
        return completion

    stage.heading("Three domains, greedy, through the OpenAI API")
    for prompt in texts:
        before = await settled_stats(client)
        found.texts[prompt.domain] = await asyncio.to_thread(write, prompt)
        found.before[prompt.domain] = work_between(before, await settled_stats(client))

    stage.heading("Which experts each domain used (strategy 'uniform')")
    placement = await client.placement()
    stage.maps(found.before, {row.layer: row.gpu_experts for row in placement.layers})

    stage.heading("'frequency' places from what it just saw, while a text is being written")
    await _swap_under_load(stage, client, front, model, texts[0], found)
    placement = await client.placement()
    together = sum(found.before.values(), Work())
    stage.maps({"all": together}, {row.layer: row.gpu_experts for row in placement.layers})

    stage.heading("The same prompts again: GPU hit rate, uniform and frequency")
    again: dict[str, Completion] = {}
    for prompt in texts:
        before = await settled_stats(client)
        again[prompt.domain] = await asyncio.to_thread(
            complete, front, model, prompt.text, found.tokens, lambda _: None
        )
        found.after[prompt.domain] = work_between(before, await settled_stats(client))
    stage.hit_rates(found.before, found.after)

    stage.heading("The greedy text, before and after")
    for domain, completion in again.items():
        found.differences[domain] = difference(found.texts[domain], completion)
    for name, different in found.differences.items():
        stage.comparison(name, different, found.tokens)
    stage.terminal.line()


async def _swap_under_load(
    stage: Stage, client: KtdClient, front: Front, model: str, prompt: Prompt, found: _Run
) -> None:
    """Applies `frequency` in the middle of a completion, and compares that one too."""
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()
    pieces = 0

    def piece(_text: str) -> None:
        nonlocal pieces
        pieces += 1
        loop.call_soon_threadsafe(begun.set)

    writing = asyncio.create_task(
        asyncio.to_thread(complete, front, model, prompt.text, found.tokens, piece)
    )
    waiting = asyncio.create_task(begun.wait())
    await asyncio.wait((writing, waiting), return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    before = pieces
    try:
        found.swap = await client.apply_and_wait(strategy="frequency")
    finally:
        found.tokens_during_swap = pieces - before
        completion = await writing
    swap = found.swap
    took = (swap.end_time.ToNanoseconds() - swap.create_time.ToNanoseconds()) / 1e9
    stage.done(
        f"{plural(swap.moves_total, 'move')}, {bytes_text(swap.bytes_done)} copied in {took:.2f}s; "
        f"{plural(found.tokens_during_swap, 'piece')} of text arrived meanwhile"
    )
    name = f"{prompt.domain}, during the swap"
    found.differences[name] = difference(found.texts[prompt.domain], completion)


def _show_log(stage: Stage, daemon: DemoDaemon) -> None:
    stage.heading("The daemon's last words")
    for line in daemon.last_lines():
        stage.note(f"  {line}")


def _json(found: _Run, seconds: float) -> dict[str, Any]:
    def rates(works: dict[str, Work]) -> dict[str, float]:
        return {
            **{name: work.hit_rate for name, work in works.items()},
            "all": sum(works.values(), Work()).hit_rate,
        }

    return {
        "gpu_hit_rate_before": rates(found.before),
        "gpu_hit_rate_after": rates(found.after),
        "moves": found.swap.moves_total if found.swap else 0,
        "bytes_copied": found.swap.bytes_done if found.swap else 0,
        "pieces_during_swap": found.tokens_during_swap,
        "text_unchanged": all(d is None for d in found.differences.values()),
        "differences": {
            name: None
            if d is None
            else {"position": d.position, "before": d.before, "after": d.after, "gap": d.gap}
            for name, d in found.differences.items()
        },
        "seconds": round(seconds, 3),
    }
