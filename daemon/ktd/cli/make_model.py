"""`ktd make-model`: a model of a published shape with generated weights, to measure with."""

from __future__ import annotations

import argparse
import json
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ktd.cli.arguments import add_json, nonnegative_int, positive_int
from ktd.cli.exit_codes import ExitCode
from ktd.cli.quantities import bytes_text, seconds_text, share_text
from ktd.cli.tables import facts
from ktd.cli.terminal import err, out
from ktd.shapes.catalogue import MODEL_NAMES, model_shape
from ktd.shapes.generated import Generated
from ktd.shapes.writer import CheckpointWriter, Written

if TYPE_CHECKING:
    from ktd.cli.arguments import Subparsers

_DESCRIPTION = """\
Writes a model folder with the configuration of a published model and generated weights: real
sizes, real formats, answers without meaning. For measuring where the real one cannot be fetched;
say so wherever you print a figure. The same seed gives the same weights everywhere."""

_LINE_SECONDS = 5.0


def add_parser(subparsers: Subparsers) -> None:
    """Adds `ktd make-model`."""
    parser = subparsers.add_parser(
        "make-model",
        help="a model of a published shape with generated weights",
        description=_DESCRIPTION,
        epilog="examples:\n"
        "  ktd make-model --shape qwen3-30b-a3b /models/q30\n"
        "  ktd make-model --shape qwen3-next-80b-a3b-fp8 --experts generated /models/next\n"
        "  ktd make-model --shape mixtral-8x7b --layers 4 --json /models/mix4",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("folder", metavar="OUTDIR", type=Path, help="folder to write; new or empty")
    add("--shape", metavar="NAME", required=True, help=f"one of {', '.join(MODEL_NAMES)}")
    add("--layers", metavar="N", type=positive_int, help="layers (default: as published)")
    add("--num-experts", metavar="N", type=positive_int, help="experts of a layer (same)")
    add(
        "--experts",
        choices=("written", "generated"),
        default="written",
        help="written: into weight files. generated: described, and the engine of `ktd serve` "
        "generates them straight into host memory; needs no disk (default: written)",
    )
    add("--seed", metavar="N", type=nonnegative_int, default=0, help="default: 0")
    add_json(parser)


def run(args: argparse.Namespace, _rest: list[str]) -> int:
    """Checks, writes, and says what was written."""
    shape = model_shape(args.shape, layers=args.layers, num_experts=args.num_experts)
    with_experts = args.experts == "written"
    progress = _Progress()
    writer = CheckpointWriter(
        Generated(shape, args.seed), args.folder, with_experts=with_experts, progress=progress
    )
    writer.check()
    progress.total = writer.num_bytes
    written = writer.write()
    seconds = progress.done()
    if getattr(args, "json", False):
        out().line(json.dumps(_as_json(args, written, shape.expert_bytes, seconds)))
        return ExitCode.OK
    on_disk = bytes_text(written.num_bytes)
    experts = f"{bytes_text(shape.expert_bytes)}, {args.experts}"
    facts(
        out(),
        [
            ("folder", str(args.folder)),
            ("shape", f"{shape.name}, {shape.layers} layers of {shape.num_experts} experts"),
            ("experts", experts),
            ("others", bytes_text(shape.other_bytes)),
            ("on disk", f"{on_disk} in {written.files} files, {seconds_text(seconds)}"),
        ],
    )
    return ExitCode.OK


def _as_json(
    args: argparse.Namespace, written: Written, expert_bytes: int, seconds: float
) -> dict[str, object]:
    return {
        "folder": str(args.folder),
        "shape": args.shape,
        "seed": args.seed,
        "experts": args.experts,
        "expert_bytes": expert_bytes,
        "written_bytes": written.num_bytes,
        "files": written.files,
        "seconds": round(seconds, 3),
    }


class _Progress:
    """A line that is rewritten where somebody looks, and one each few seconds in a log."""

    def __init__(self) -> None:
        self.total = 0
        self._lock = threading.Lock()
        self._bytes = 0
        self._began = self._shown = time.monotonic()
        self._terminal = err()

    def __call__(self, num_bytes: int) -> None:
        """So many more bytes are written."""
        with self._lock:
            self._bytes += num_bytes
            now = time.monotonic()
            often = 0.2 if self._terminal.interactive else _LINE_SECONDS
            if now - self._shown < often:
                return
            self._shown = now
            rate = self._bytes / (now - self._began)
            left = seconds_text((self.total - self._bytes) / rate)
            text = (
                f"writing: {share_text(self._bytes / self.total)} of {bytes_text(self.total)}, "
                f"{bytes_text(round(rate))}/s, {left} left"
            )
            if self._terminal.interactive:
                self._terminal.progress(text)
            else:
                self._terminal.line(text)

    def done(self) -> float:
        """Clears the line; the seconds that it took."""
        self._terminal.progress_done()
        return time.monotonic() - self._began
