"""Where ktd keeps things when nobody says otherwise; also read by every client command."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

SOCKET_NAME = "ktd.sock"
CONFIG_NAME = "ktd.toml"


def default_runtime_dir(env: Mapping[str, str], uid: int) -> Path:
    """``/run/ktd`` for root, ``$XDG_RUNTIME_DIR/ktd`` else, a private folder in /tmp without it."""
    if uid == 0:
        return Path("/run/ktd")
    base = env.get("XDG_RUNTIME_DIR")
    return Path(base) / "ktd" if base else Path(f"/tmp/ktd-{uid}")  # noqa: S108 - made 0700 and checked for its owner before use


def default_state_dir(env: Mapping[str, str], uid: int) -> Path:
    """``/var/lib/ktd`` for root, ``$XDG_STATE_HOME/ktd`` else."""
    if uid == 0:
        return Path("/var/lib/ktd")
    base = env.get("XDG_STATE_HOME") or str(Path(env.get("HOME", "/")) / ".local/state")
    return Path(base) / "ktd"


def default_config_files(env: Mapping[str, str], uid: int) -> tuple[Path, ...]:
    """Files looked for in this order; the first that exists is read."""
    base = env.get("XDG_CONFIG_HOME") or str(Path(env.get("HOME", "/")) / ".config")
    own = Path(base) / "ktd" / CONFIG_NAME
    system = Path("/etc/ktd") / CONFIG_NAME
    return (system, own) if uid == 0 else (own, system)


def default_socket(env: Mapping[str, str] | None = None) -> Path:
    """The daemon's gRPC socket: ``KTD_SOCKET``, else in the default runtime folder."""
    env = os.environ if env is None else env
    named = env.get("KTD_SOCKET")
    return Path(named) if named else default_runtime_dir(env, os.getuid()) / SOCKET_NAME
