"""One daemon per state directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from ktd.errors import DoesNotFit


@contextlib.contextmanager
def state_lock(state_dir: Path) -> Iterator[None]:
    """Holds the directory; the kernel lets go of it however this process ends.

    Raises:
        DoesNotFit: another daemon holds it (with its pid), or it cannot be used.
    """
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DoesNotFit(
            f"The state directory {state_dir} cannot be used ({error.strerror}: "
            f"{error.filename}); choose another one with --state-dir."
        ) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"
            raise DoesNotFit(
                f"Another ktd (pid {pid}) uses the state directory {state_dir}; stop it, or "
                "choose another one with --state-dir."
            ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)
