"""How a command reaches the daemon."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from ktd.client import KtdClient, default_socket

if TYPE_CHECKING:
    import argparse

    from ktd.client import EngineStatus


def socket_of(args: argparse.Namespace) -> Path:
    """`--socket`, else ``KTD_SOCKET``, else the daemon's default."""
    named = getattr(args, "socket", None)
    return Path(named) if named else default_socket()


def client_of(args: argparse.Namespace) -> KtdClient:
    """A client, to be entered as an async context manager."""
    return KtdClient(socket_of(args))


def engine_status(args: argparse.Namespace) -> EngineStatus:
    """The engine's status, for commands that are not asynchronous themselves.

    Raises:
        KtdError: the daemon cannot be reached.
    """

    async def ask() -> EngineStatus:
        async with client_of(args) as client:
            return await client.status()

    return asyncio.run(ask())
