"""Where the daemon's socket lies unless somebody says otherwise."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

VARIABLE = "KTD_SOCKET"
SYSTEM_SOCKET = Path("/run/ktd/ktd.sock")


def default_socket(
    environment: Mapping[str, str] = os.environ,
    *,
    uid: int | None = None,
    system_socket: Path = SYSTEM_SOCKET,
) -> Path:
    """``$KTD_SOCKET``; else ``/run/ktd/ktd.sock`` for root, or if it exists; else the user's own.

    The user's own is ``$XDG_RUNTIME_DIR/ktd/ktd.sock``, or ``/tmp/ktd-UID/ktd.sock`` without that
    variable. A daemon and its clients agree by asking this one function.
    """
    uid = os.getuid() if uid is None else uid
    if named := environment.get(VARIABLE):
        return Path(named)
    if uid == 0 or system_socket.is_socket():
        return system_socket
    if runtime := environment.get("XDG_RUNTIME_DIR"):
        return Path(runtime) / "ktd" / "ktd.sock"
    return Path(f"/tmp/ktd-{uid}/ktd.sock")  # noqa: S108  # the server checks who owns the folder
