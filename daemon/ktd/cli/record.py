"""`ktd record`: the routing of each pass, into files that SGLang's tools read."""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ktd.cli.arguments import add_command
from ktd.cli.connection import client_of
from ktd.cli.exit_codes import ExitCode
from ktd.cli.message_json import message_json
from ktd.cli.quantities import bytes_text, count_text
from ktd.cli.tables import facts
from ktd.cli.terminal import err, out
from ktd.client import RecordingMode

if TYPE_CHECKING:
    from ktd.cli.arguments import Subparsers
    from ktd.client import DumpRecordingResponse, Recording

_PREFIX = "RECORDING_MODE_"
_MODES = ("stat", "stat_approx", "per_pass", "per_token")


def add_parser(subparsers: Subparsers) -> None:
    """Adds `ktd record` and its actions."""
    parser = add_command(
        subparsers,
        "record",
        summary="record which experts each pass chose, into files for SGLang's tools",
        description=(
            "Records the routing of each forward pass while requests run, in the form of SGLang's\n"
            "expert distribution recorder, which --init-expert-location and `ktd simulate` read.\n"
            "What `ktd stats` prints is counted all the time and needs no recording."
        ),
        examples=[
            "ktd record start --mode per_token --dir ./traces",
            "ktd record status",
            "ktd record dump",
            "ktd record stop",
        ],
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, title="actions")
    start = add_command(
        actions,
        "start",
        summary="begin with the next pass",
        description=(
            "Begins to record with the next pass. Modes:\n"
            "  stat         counts of each pass: the latest 1,000 passes, see --buffer-size\n"
            "  stat_approx  counts from start to dump in one piece; costs nothing, drops nothing\n"
            "  per_pass     counts of each pass with its number, in up to 1 GiB of memory\n"
            "  per_token    the experts of each token, in up to 1 GiB of memory\n"
            "What is not given is as `ktd serve` was told (--expert-distribution-recorder-mode,\n"
            "--expert-distribution-recorder-dir, --record-kt-gpu-expert-distribution)."
        ),
        examples=["ktd record start", "ktd record start --mode per_token --dir ./traces"],
    )
    start.add_argument("--mode", choices=_MODES, help="what to record")
    _add_dir(start, "where `ktd record dump` writes")
    start.add_argument(
        "--gpu-masks",
        action=argparse.BooleanOptionalAction,
        help="record which experts were in GPU slots during each pass, too",
    )
    start.add_argument(
        "--buffer-size",
        type=int,
        metavar="PASSES",
        help="passes that mode stat holds, the latest ones; -1: all",
    )
    add_command(actions, "stop", summary="record no more; what was recorded can still be dumped")
    dump = add_command(
        actions,
        "dump",
        summary="write what was recorded, and print where",
        description=(
            "Writes what was recorded since the start or the last dump and prints the paths. A\n"
            "recording that runs goes on; requests are served meanwhile."
        ),
        examples=["ktd record dump", "ktd record dump --dir ./traces --json | jq -r .paths[0]"],
    )
    _add_dir(dump, "where to write, instead of where `ktd record start` said")
    add_command(actions, "status", summary="how much has been recorded")


def run(args: argparse.Namespace, _rest: list[str]) -> int:
    """Runs the chosen action and prints what came of it."""
    if args.action == "dump":
        return _print_dump(args, asyncio.run(_dump(args)))
    recording = asyncio.run(_act(args))
    if getattr(args, "json", False):
        out().line(json.dumps(recording_json(recording)))
    else:
        _print(recording)
    return ExitCode.OK


def recording_json(recording: Recording) -> dict[str, Any]:
    """A recording as JSON; ``mode`` as it is written on the command line."""
    value: dict[str, Any] = message_json(recording)
    return value | {"mode": _mode(recording)}


def _add_dir(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--dir", metavar="D", help=f"{text}; on the daemon's host")


def _absolute(folder: str | None) -> str:
    return str(Path(folder).expanduser().absolute()) if folder else ""


async def _act(args: argparse.Namespace) -> Recording:
    async with client_of(args) as client:
        if args.action == "start":
            return await client.start_recording(
                RecordingMode.Value(_PREFIX + (args.mode or "unspecified").upper()),
                directory=_absolute(args.dir),
                gpu_masks=args.gpu_masks,
                buffer_passes=args.buffer_size,
            )
        if args.action == "stop":
            return await client.stop_recording()
        return await client.recording()


async def _dump(args: argparse.Namespace) -> DumpRecordingResponse:
    async with client_of(args) as client:
        return await client.dump_recording(_absolute(args.dir))


def _print_dump(args: argparse.Namespace, answer: DumpRecordingResponse) -> int:
    if getattr(args, "json", False):
        written = recording_json(answer.written)
        out().line(json.dumps({"paths": list(answer.paths), "written": written}))
        return ExitCode.OK
    for path in answer.paths:
        out().line(path)
    # Not on standard output, so that a script gets the paths and nothing else.
    err().line(f"{_amount(answer.written)} in mode {_mode(answer.written)}")
    for note in answer.written.notes:
        err().line(f"note: {note}")
    return ExitCode.OK


def _print(recording: Recording) -> None:
    terminal = out()
    if not _mode(recording):
        terminal.line("Nothing has been recorded; begin with `ktd record start`.")
    else:
        state = "recording" if recording.recording else "stopped"
        facts(
            terminal,
            [
                ("state", f"{state}, mode {_mode(recording)}"),
                ("recorded", _amount(recording)),
                ("GPU masks", "recorded too" if recording.gpu_masks else ""),
                ("directory", recording.directory),
            ],
        )
    for note in recording.notes:
        terminal.line(f"note: {note}")


def _amount(recording: Recording) -> str:
    held = f", {bytes_text(recording.bytes)}" if recording.bytes else ""
    return f"{count_text(recording.passes)} passes, {count_text(recording.tokens)} tokens{held}"


def _mode(recording: Recording) -> str:
    name = RecordingMode.Name(recording.mode).removeprefix(_PREFIX).lower()
    return "" if name == "unspecified" else name
