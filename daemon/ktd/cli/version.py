"""`ktd version`: versions of this client and of the daemon it would talk to."""

from __future__ import annotations

import asyncio
import json
import platform
from typing import TYPE_CHECKING

from ktd.cli.arguments import add_command
from ktd.cli.checks.software import installed
from ktd.cli.connection import client_of
from ktd.cli.exit_codes import ExitCode
from ktd.cli.tables import facts
from ktd.cli.terminal import out
from ktd.errors import KtdError
from ktd.version import __version__

if TYPE_CHECKING:
    import argparse

    from ktd.cli.arguments import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """Adds `ktd version`."""
    add_command(
        subparsers,
        "version",
        summary="versions of the client and the daemon",
        description=(
            "Prints the versions of this client and of what is installed beside it, and those of\n"
            "the daemon if one is running. Not reaching a daemon is no error here."
        ),
        examples=["ktd version", "ktd version --json"],
    )


def run(args: argparse.Namespace, _rest: list[str]) -> int:
    """Asks and prints."""
    daemon = asyncio.run(_daemon(args))
    own = {
        "ktd": __version__,
        "python": platform.python_version(),
        "sglang": installed("sglang"),
        "torch": installed("torch"),
    }
    if getattr(args, "json", False):
        out().line(json.dumps({**own, "daemon": daemon}))
        return ExitCode.OK
    facts(
        out(),
        [
            ("ktd", __version__),
            ("Python", own["python"] or ""),
            ("SGLang", own["sglang"] or "not installed"),
            ("torch", own["torch"] or "not installed"),
            ("daemon", _daemon_text(daemon)),
        ],
    )
    return ExitCode.OK


async def _daemon(args: argparse.Namespace) -> dict[str, object] | None:
    try:
        async with client_of(args) as client:
            version = await client.version()
    except KtdError:
        return None
    return {
        "ktd": version.ktd,
        "python": version.python,
        "api_versions": list(version.api_versions),
    }


def _daemon_text(daemon: dict[str, object] | None) -> str:
    if daemon is None:
        return "none reached"
    apis = daemon["api_versions"]
    names = ", ".join(apis) if isinstance(apis, list) else ""
    return f"ktd {daemon['ktd']}, Python {daemon['python']}, API {names}"
