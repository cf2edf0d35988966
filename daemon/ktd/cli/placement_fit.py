"""`ktd placement fit`: the largest budget of GPU slots that fits into memory."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from ktd.cli.arguments import UsageError, add_command, positive_int
from ktd.cli.connection import client_of
from ktd.cli.exit_codes import ExitCode
from ktd.cli.quantities import bytes_text, share_text
from ktd.cli.terminal import Terminal, out
from ktd.config.options import CPU_EXPERT_FORMATS, HOST_MEMORY

if TYPE_CHECKING:
    import argparse

    from ktd.cli.arguments import Subparsers

_FIELDS = (
    "slots",
    "ratio",
    "largest_slots",
    "total_experts",
    "num_layers",
    "expert_bytes",
    "slot_bytes",
    "free_bytes",
    "room_bytes",
)


def add_parser(subparsers: Subparsers) -> None:
    """Adds `ktd placement fit`."""
    parser = add_command(
        subparsers,
        "fit",
        summary="the largest budget that fits into memory",
        description=(
            "Says how many experts can have GPU slots beside weights and KV cache, and what it\n"
            "assumed. It is what --kt-gpu-experts-ratio auto takes. With MODEL it asks no daemon;\n"
            "without, it is about the running engine after a restart. Without a GPU slots win no\n"
            "speed, and it proposes a quarter of the experts at most."
        ),
        examples=[
            "ktd placement fit",
            "ktd placement fit ./model --max-total-tokens 131072",
            "ktd placement fit ./model --tp 2 --json",
        ],
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="folder with a checkpoint")
    parser.add_argument(
        "--max-total-tokens",
        type=positive_int,
        metavar="N",
        help="with MODEL: tokens that the KV cache must hold (default: 65536)",
    )
    parser.add_argument(
        "--chunked-prefill-size",
        type=positive_int,
        metavar="N",
        help="with MODEL: tokens of a step of prefill (default: SGLang's, by the GPU's size)",
    )
    parser.add_argument(
        "--tp", type=positive_int, metavar="N", help="with MODEL: tensor-parallel ranks"
    )
    parser.add_argument(
        "--host-memory",
        choices=HOST_MEMORY,
        help="with MODEL: what experts are in, as `ktd serve` takes it (default: copy)",
    )
    parser.add_argument(
        "--cpu-expert-format",
        choices=CPU_EXPERT_FORMATS,
        help="with MODEL: as `ktd serve` takes it (default: auto, which is checkpoint)",
    )
    parser.add_argument("--device", help="with MODEL: auto, cpu or cuda (default: auto)")


def run(args: argparse.Namespace) -> int:
    """Asks and prints.

    Raises:
        UsageError: an option needs MODEL, and there is none.
        KtdError: the model cannot be served here, or nothing is known of it yet.
    """
    value = _of_folder(args) if args.model is not None else asyncio.run(_of_engine(args))
    if getattr(args, "json", False):
        out().line(json.dumps(value))
    else:
        _print(out(), value)
    return ExitCode.OK


def _of_folder(args: argparse.Namespace) -> dict[str, Any]:
    # Looks at the folder and at this host's memory itself: there need be no daemon.
    from ktd.app.fitting import fit_of_model  # noqa: PLC0415

    fit = fit_of_model(
        args.model,
        device=args.device or "auto",
        tp=args.tp or 1,
        kv_tokens=args.max_total_tokens,
        chunk=args.chunked_prefill_size,
        mapped=args.host_memory == "mmap",
        cpu_format=args.cpu_expert_format,
    )
    values = {name: getattr(fit, name) for name in _FIELDS if name != "largest_slots"}
    values["largest_slots"] = fit.largest
    return {name: values[name] for name in _FIELDS} | {"assumptions": list(fit.assumptions)}


async def _of_engine(args: argparse.Namespace) -> dict[str, Any]:
    for flag, value in (
        ("--max-total-tokens", args.max_total_tokens),
        ("--chunked-prefill-size", args.chunked_prefill_size),
        ("--tp", args.tp),
        ("--device", args.device),
        ("--host-memory", args.host_memory),
        ("--cpu-expert-format", args.cpu_expert_format),
    ):
        if value is not None:
            raise UsageError(
                f"{flag} needs MODEL: what runs has been given it already; "
                "see 'ktd placement fit --help'"
            )
    async with client_of(args) as client:
        fit = await client.fit()
    return {name: getattr(fit, name) for name in _FIELDS} | {"assumptions": list(fit.assumptions)}


def _print(terminal: Terminal, value: dict[str, Any]) -> None:
    slots, total, layers = value["slots"], value["total_experts"], value["num_layers"]
    terminal.line(
        f"{slots} of {total} experts fit into GPU slots ({share_text(slots / total)}), "
        f"{bytes_text(value['slot_bytes'])} in all"
    )
    terminal.line(
        f"--kt-gpu-experts-ratio {value['ratio']:g}, or --kt-num-gpu-experts {slots // layers}"
    )
    for sentence in value["assumptions"]:
        terminal.line(f"- {sentence}")
