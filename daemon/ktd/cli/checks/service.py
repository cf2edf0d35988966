"""The daemon's socket and port, and the folder it would keep its state in."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

from ktd.cli.checks.finding import Finding, Level
from ktd.cli.quantities import bytes_text

_HTTP_PORT = 30000
_LONGEST_SOCKET_PATH = 107  # sun_path holds 108 bytes with its end, see unix(7).
_FEW_FREE_BYTES = 1 << 30


def service_findings(socket_path: Path, state_dir: Path) -> list[Finding]:
    """Whether `ktd serve` could take its default places, or already has."""
    running = _listening(socket_path)
    return [_socket(socket_path, running=running), _port(running=running), _state(state_dir)]


def _socket(path: Path, *, running: bool) -> Finding:
    data = {"path": str(path), "daemon": running}
    length = len(os.fsencode(path))
    if length > _LONGEST_SOCKET_PATH:
        text = f"{path} has {length} bytes, {_LONGEST_SOCKET_PATH} is the most"
        advice = "give a shorter --socket or KTD_SOCKET"
        return Finding("service", "socket", Level.PROBLEM, text, advice, data)
    if running:
        return Finding("service", "socket", Level.OK, f"a daemon listens on {path}", data=data)
    parent = _existing(path.parent)
    if not os.access(parent, os.W_OK):
        text = f"{path} cannot be made: {parent} is not writable for you"
        advice = "give another --socket or KTD_SOCKET, or XDG_RUNTIME_DIR"
        return Finding("service", "socket", Level.WARNING, text, advice, data)
    return Finding("service", "socket", Level.OK, f"no daemon on {path}; it can be made", data=data)


def _port(*, running: bool) -> Finding:
    data: dict[str, object] = {"port": _HTTP_PORT}
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", _HTTP_PORT))
        except OSError as error:
            data["free"] = False
            text = f"{_HTTP_PORT} is taken ({os.strerror(error.errno or 0)})"
            if running:
                return Finding(
                    "service", "HTTP port", Level.OK, f"{text}; a daemon runs", data=data
                )
            advice = "serve with another --port"
            return Finding("service", "HTTP port", Level.WARNING, text, advice, data)
    data["free"] = True
    return Finding("service", "HTTP port", Level.OK, f"{_HTTP_PORT} is free", data=data)


def _state(path: Path) -> Finding:
    parent = _existing(path)
    free = shutil.disk_usage(parent).free
    data = {"path": str(path), "free_bytes": free}
    text = f"{path}, {bytes_text(free)} free"
    if not os.access(parent, os.W_OK):
        advice = "give another --state-dir or XDG_STATE_HOME"
        text = f"{path}: {parent} is not writable for you"
        return Finding("service", "state", Level.WARNING, text, advice, data)
    if free < _FEW_FREE_BYTES:
        return Finding("service", "state", Level.WARNING, text, "make room on that disk", data)
    return Finding("service", "state", Level.OK, text, data=data)


def _listening(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _existing(path: Path) -> Path:
    """``path`` or its nearest ancestor that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
