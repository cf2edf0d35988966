"""Where the daemon's socket lies unless somebody says otherwise."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

VARIABLE = "KTD_SOCKET"
# Of `ktd serve --runtime-dir`, where its socket is made unless that is named too.
RUNTIME_VARIABLE = "KTD_RUNTIME_DIR"
SOCKET_NAME = "ktd.sock"
SYSTEM_SOCKET = Path("/run/ktd") / SOCKET_NAME


def default_socket(
    environment: Mapping[str, str] = os.environ,
    *,
    uid: int | None = None,
    system_socket: Path = SYSTEM_SOCKET,
) -> Path:
    """``$KTD_SOCKET``; else ``$KTD_RUNTIME_DIR/ktd.sock``; else the system's; else the user's own.

    The system's is ``/run/ktd/ktd.sock``: for root, and for whoever finds it there.
    The user's own is ``$XDG_RUNTIME_DIR/ktd/ktd.sock``, or ``/tmp/ktd-UID/ktd.sock`` without that
    variable. A daemon that is told nothing else makes it there (``ktd.config.paths``).
    """
    uid = os.getuid() if uid is None else uid
    if named := environment.get(VARIABLE):
        return _whole(named)
    if folder := environment.get(RUNTIME_VARIABLE):
        return _whole(folder) / SOCKET_NAME
    if uid == 0 or system_socket.is_socket():
        return system_socket
    if runtime := environment.get("XDG_RUNTIME_DIR"):
        return Path(runtime) / "ktd" / SOCKET_NAME
    return Path(f"/tmp/ktd-{uid}", SOCKET_NAME)  # noqa: S108  # the server checks who owns the folder


def _whole(text: str) -> Path:
    """As the daemon reads its variables."""
    return Path(text).expanduser().absolute()
