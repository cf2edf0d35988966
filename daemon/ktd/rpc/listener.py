"""The daemon's Unix socket: claimed before gRPC binds it, so that two daemons never share one."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ktd.errors import ConfigError, DoesNotFit

if TYPE_CHECKING:
    from collections.abc import Iterator

# sun_path holds 108 bytes, the last of which is a NUL.
LONGEST_PATH = 107
MODE = 0o660


@contextmanager
def claimed(path: Path) -> Iterator[Path]:
    """Holds ``path`` for a socket: its folder exists, nobody listens there, no file is in the way.

    A lock file beside it decides between two daemons, also between one that is still starting and
    another; it stays behind, unlocked. The socket is removed at the end.

    Raises:
        ConfigError: the path is too long, or something else than a socket is there.
        DoesNotFit: another daemon has it, or the folder cannot be used.
    """
    path = path.absolute()
    length = len(os.fsencode(path))
    if length > LONGEST_PATH:
        raise ConfigError(
            f"The socket path {path} has {length} bytes, but Unix sockets allow {LONGEST_PATH}; "
            "choose a shorter one with --socket."
        )
    try:
        _make_folder(path.parent)
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DoesNotFit(
            f"The socket {path} cannot be made ({error.strerror}: {error.filename}); choose "
            "another path with --socket."
        ) from error
    try:
        _lock(lock, path)
        _clear(path)
        yield path
        path.unlink(missing_ok=True)
    finally:
        os.close(lock)


def _make_folder(folder: Path) -> None:
    folder.mkdir(mode=0o750, parents=True, exist_ok=True)
    facts = folder.stat()
    # In /tmp anybody can have made the folder first, and would own every socket in it.
    if facts.st_uid not in (os.getuid(), 0):
        raise DoesNotFit(
            f"The folder {folder} belongs to user {facts.st_uid}, not to {os.getuid()}; choose "
            "another path with --socket."
        )


def _lock(lock: int, path: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _in_use(path) from None


def _clear(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{path} exists and is not a socket; choose another one with --socket.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)  # left behind by a daemon that was killed
            return
    raise _in_use(path)


def _in_use(path: Path) -> DoesNotFit:
    return DoesNotFit(
        f"Another daemon is listening on {path}; stop it, or choose another socket with --socket."
    )
