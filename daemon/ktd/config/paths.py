"""Where ktd keeps things when nobody says otherwise; ``ktd.client.socket`` agrees."""

from __future__ import annotations

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
