"""`ktd config show`: every setting and where its value came from."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ktd.cli.arguments import UsageError
from ktd.config.options import OPTIONS
from ktd.config.sources import from_process

if TYPE_CHECKING:
    from ktd.cli.arguments import Subparsers
    from ktd.config.settings import Settings

_HELP = """\
usage: ktd config show [--json] [options of `ktd serve`]

Prints every setting that `ktd serve` would use with the same options, environment and ktd.toml,
and where each value came from. Exits with 2 and one sentence if something is wrong, so it also
checks a configuration before a restart.

examples:
  ktd config show
  ktd config show --json --config /etc/ktd/ktd.toml
"""


def add_parser(subparsers: Subparsers) -> None:
    """Adds `ktd config`, which takes the options of `ktd serve`."""
    parser = subparsers.add_parser(
        "config",
        help="the configuration and where each value comes from",
        add_help=False,
        prefix_chars="\0",
    )
    parser.add_argument("argv", nargs=argparse.REMAINDER)


def run(args: argparse.Namespace, rest: list[str]) -> int:
    """Prints the configuration.

    Raises:
        ConfigError: the configuration is wrong.
        UsageError: there is no such action.
    """
    words = [*args.argv, *rest]
    if "-h" in words or "--help" in words:
        sys.stdout.write(_HELP)
        return 0
    as_json = "--json" in words
    words = [word for word in words if word != "--json"]
    if "show" not in words:
        raise UsageError("`ktd config` has one action: show; see 'ktd config --help'")
    words.remove("show")
    settings = from_process(words, model_required=False)
    rows = _rows(settings)
    if as_json:
        sys.stdout.write(json.dumps(rows, indent=1) + "\n")
    else:
        sys.stdout.write(_table(rows))
        for notice in settings.notices:
            sys.stderr.write(f"note: {notice}\n")
    return 0


def _rows(settings: Settings) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for option in OPTIONS:
        value = getattr(settings, option.name)
        if isinstance(value, Path):
            value = str(value)
        if option.secret and value is not None:
            value = "(hidden)"
        rows.append(
            {"name": option.key, "value": value, "source": settings.provenance[option.name]}
        )
    rows.append(
        {
            "name": "sglang-args",
            "value": list(settings.sglang_args),
            "source": "file and flags" if settings.sglang_args else "default",
        }
    )
    return rows


def _table(rows: list[dict[str, object]]) -> str:
    shown = [
        (
            str(row["name"]),
            "" if row["value"] in (None, []) else _plain(row["value"]),
            row["source"],
        )
        for row in rows
    ]
    names = max(len(name) for name, _, _ in shown)
    texts = max(len(text) for _, text, _ in shown)
    return "".join(f"{name:<{names}}  {text:<{texts}}  {source}\n" for name, text, source in shown)


def _plain(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
