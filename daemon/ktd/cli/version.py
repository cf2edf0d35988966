"""`ktd version`: versions of this client and of the daemon it would talk to."""

from __future__ import annotations

import argparse
import json
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from ktd.cli.arguments import add_command
from ktd.cli.exit_codes import ExitCode
from ktd.cli.tables import facts
from ktd.cli.terminal import out
from ktd.version import __version__

if TYPE_CHECKING:
    from ktd.cli.arguments import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """Adds `ktd version`."""
    add_command(
        subparsers,
        "version",
        summary="versions of the client and the daemon",
        description=(
            "Prints the versions of this client and of what is installed beside it, and those of\n"
            "the daemon if one is running. Not reaching a daemon is not an error here."
        ),
        examples=["ktd version", "ktd version --json"],
    )


def installed(package: str) -> str | None:
    """The version of an installed distribution, found without importing it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
