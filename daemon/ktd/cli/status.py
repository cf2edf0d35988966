"""`ktd status`: what the engine is doing."""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import TYPE_CHECKING

from ktd.cli.arguments import add_command, positive_float
from ktd.cli.connection import client_of
from ktd.cli.exit_codes import ExitCode
from ktd.cli.message_json import enum_name, message_json
from ktd.cli.quantities import bytes_text, plural, seconds_text
from ktd.cli.tables import facts
from ktd.cli.terminal import Terminal, err, out
from ktd.errors import EngineFailed, EngineNotReady

if TYPE_CHECKING:
    from ktd.cli.arguments import Subparsers
    from ktd.client import EngineStatus

_COLOURS = {"READY": "green", "FAILED": "red", "BACKOFF": "red", "STOPPED": "dim"}


def add_parser(subparsers: Subparsers) -> None:
    """Adds `ktd status`."""
    parser = add_command(
        subparsers,
        "status",
        summary="what the engine is doing",
        description=(
            "Prints phase, model, memory and what an operator should know. Exits with 0 whenever\n"
            "the daemon answers; with --wait only once requests are served."
        ),
        examples=[
            "ktd status",
            "ktd status --wait 300   # until requests are served, at most 300 s",
            "ktd status --json | jq -r .phase",
        ],
    )
    parser.add_argument(
        "--wait",
        nargs="?",
        type=positive_float,
        const=float("inf"),
        metavar="SECONDS",
        help="wait until requests are served",
    )


def run(args: argparse.Namespace, _rest: list[str]) -> int:
    """Asks and prints."""
    status = asyncio.run(_ask(args))
    if getattr(args, "json", False):
        value = message_json(status)
        out().line(json.dumps(value, indent=2, ensure_ascii=False))
    else:
        print_status(out(), status)
    return ExitCode.OK


async def _ask(args: argparse.Namespace) -> EngineStatus:
    async with client_of(args) as client:
        if args.wait is None:
            return await client.status()
        limit = None if args.wait == float("inf") else args.wait
        try:
            async with asyncio.timeout(limit):
                async for status in client.watch_status():
                    phase = enum_name(status, "phase")
                    err().progress(f"{phase.lower()}: {doing(status)}")
                    if phase == "READY":
                        return status
                    if phase == "FAILED":
                        raise EngineFailed(status.message)
        except TimeoutError as error:
            raise EngineNotReady(f"the engine does not serve after {limit:g} s") from error
        finally:
            err().progress_done()
    raise EngineNotReady("the daemon shut down before the engine was ready")


def doing(status: EngineStatus) -> str:
    """The status's sentence; an older daemon's does not say how far loading has come."""
    progress = status.progress
    loading = enum_name(status, "phase") == "LOADING"
    if loading and progress.bytes_total and "of experts" not in status.message:
        share = 100 * progress.bytes_done / progress.bytes_total
        return f"{share:.0f} % of {bytes_text(progress.bytes_total)} of experts in memory"
    return status.message


def print_status(terminal: Terminal, status: EngineStatus) -> None:
    """Prints the status as a few aligned lines."""
    phase = enum_name(status, "phase")
    model, memory, versions = status.model, status.memory, status.versions
    facts(
        terminal,
        [
            ("engine", _phase(terminal, status, phase)),
            ("", doing(status)),
            ("model", _model(status) if model.path else ""),
            ("experts", _experts(status) if model.num_moe_layers else ""),
            ("memory", _memory(status) if memory.host_store_bytes else ""),
            ("ranks", _ranks(status)),
            ("prefill", _prefill(status)),
            ("placement", f"revision {status.placement_revision}" if model.path else ""),
            ("requests", f"{status.requests_in_flight} running" if phase == "READY" else ""),
            ("OpenAI API", f"{status.http_address}/v1" if status.http_address else ""),
            ("restarts", str(status.restarts) if status.restarts else ""),
            ("versions", _versions(versions.ktd, versions.sglang, versions.torch)),
        ],
    )
    for condition in status.conditions:
        mark = terminal.styled("!", "yellow")
        reason = terminal.styled(f"({condition.reason})", "dim")
        terminal.line(f"{mark} {condition.message} {reason}")


def _phase(terminal: Terminal, status: EngineStatus, phase: str) -> str:
    text = terminal.styled(phase, "bold", _COLOURS.get(phase, "yellow"))
    since = time.time() - status.phase_time.ToNanoseconds() / 1e9
    if status.HasField("phase_time") and since >= 0:
        text += f" for {seconds_text(since)}"
    wait = status.next_start_time.ToNanoseconds() / 1e9 - time.time()
    if status.HasField("next_start_time") and wait > 0:
        text += f", starts again in {seconds_text(wait)}"
    return text


def _model(status: EngineStatus) -> str:
    model = status.model
    name = model.served_name or model.path
    path = f" from {model.path}" if model.path != name else ""
    return f"{name} ({model.architecture}){path}"


def _experts(status: EngineStatus) -> str:
    model, memory = status.model, status.memory
    return (
        f"{plural(model.num_moe_layers, 'layer')} of {model.num_experts}, "
        f"{model.experts_per_token} per token, {_format(status)}; "
        f"{memory.total_slots} of {memory.total_experts} have GPU slots"
    )


def _format(status: EngineStatus) -> str:
    model = status.model
    if model.cpu_expert_format in ("", model.expert_format):
        return str(model.expert_format)
    return (
        f"{model.expert_format} quantised to {model.cpu_expert_format} at load "
        "(lossy against the checkpoint)"
    )


def _memory(status: EngineStatus) -> str:
    memory = status.memory
    where = "on the host"
    if memory.host_memory == "mmap":
        where = "mapped from the checkpoint's files (mmap)"
        if memory.host_copied_bytes:
            where += f", {bytes_text(memory.host_copied_bytes)} of them copied"
    return (
        f"{bytes_text(memory.host_store_bytes)} of experts {where}, "
        f"{bytes_text(memory.slot_bytes)} in slots, {bytes_text(memory.expert_bytes)} each"
    )


def _ranks(status: EngineStatus) -> str:
    return ", ".join(
        f"{rank.rank}: {rank.device}, {rank.isa}, {plural(rank.threads, 'thread')}, pid {rank.pid}"
        for rank in status.ranks
    )


def _prefill(status: EngineStatus) -> str:
    """How a step of prefill runs on GPUs; all ranks do the same."""
    rank = next((rank for rank in status.ranks if rank.device.startswith("cuda")), None)
    if rank is None:
        return ""
    graphs = "on" if rank.prefill_graphs else "off: a step is launched layer by layer"
    if not rank.prefill_buffer_bytes:
        return f"prefill graphs {graphs}; no experts stream to the GPU"
    return (
        f"prefill graphs {graphs}; from {rank.prefill_threshold:,} tokens on experts stream "
        f"through {bytes_text(rank.prefill_buffer_bytes)} on each GPU"
    )


def _versions(ktd: str, sglang: str, torch: str) -> str:
    named = (("ktd", ktd), ("SGLang", sglang), ("torch", torch))
    return ", ".join(f"{name} {version}" for name, version in named if version)
