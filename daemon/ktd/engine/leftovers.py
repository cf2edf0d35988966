"""Finds and ends processes of an engine by what their environment carries, and clears its files.

An engine's processes rename themselves and leave their process group, and their parent may be
gone; the one mark that stays is ``KTD_ENGINE_ID`` in ``/proc/PID/environ``. (setproctitle would
overwrite that memory; the launcher's ``SPT_NOENV`` keeps it from doing so.)
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
import shutil
import signal
import time
from pathlib import Path

from ktd.enginespec import ID_VARIABLE
from ktd.errors import EngineFailed

_PROC = Path("/proc")
_PREFIX_DIGITS = 12
_ROUND_SECONDS = 0.05
# Two empty looks in a row: a process between fork and exec has no environment for a moment.
_QUIET_ROUNDS = 2


def id_prefix(state_dir: Path) -> str:
    """What the ids of all engines of the daemon with this state directory begin with."""
    digest = hashlib.sha256(os.fsencode(state_dir.resolve())).hexdigest()
    return f"{digest[:_PREFIX_DIGITS]}-"


def new_engine_id(state_dir: Path) -> str:
    """An id for the next start: ``<12 hex digits of the state directory>-<8 random ones>``."""
    return id_prefix(state_dir) + secrets.token_hex(4)


def processes_of(prefix: str) -> list[int]:
    """Pids whose environment has an engine id that begins with ``prefix``; this process excepted.

    Only processes whose environment may be read are seen: one's own, or all of them for root.
    """
    mark = f"{ID_VARIABLE}={prefix}".encode()
    own = os.getpid()
    found = []
    for entry in _PROC.iterdir():
        if not entry.name.isdigit() or int(entry.name) == own:
            continue
        if _carries(entry, mark) and not _is_zombie(entry):
            found.append(int(entry.name))
    return found


async def end_processes(prefix: str, *, timeout: float = 5.0) -> list[int]:  # noqa: ASYNC109 - the number of rounds depends on it
    """Kills every process of the engines with this id prefix; returns the pids it found.

    Raises:
        EngineFailed: some are still there after ``timeout`` seconds (stuck in the kernel).
    """
    mark = f"{ID_VARIABLE}={prefix}".encode()
    seen: set[int] = set()
    quiet = 0
    deadline = time.monotonic() + timeout
    while quiet < _QUIET_ROUNDS:
        pids = await asyncio.to_thread(processes_of, prefix)
        quiet = 0 if pids else quiet + 1
        seen.update(pids)
        for pid in pids:
            _kill(pid, mark)
        if pids and time.monotonic() > deadline:
            raise EngineFailed(
                f"Processes {', '.join(map(str, sorted(pids)))} of an earlier engine do not end "
                "after SIGKILL; the host may need a restart."
            )
        await asyncio.sleep(_ROUND_SECONDS if pids else _ROUND_SECONDS / 5)
    return sorted(seen)


async def clear(state_dir: Path, runtime_dir: Path) -> list[int]:
    """Ends what an earlier daemon of this state directory left, and removes its runtime folders."""
    prefix = id_prefix(state_dir)
    pids = await end_processes(prefix)
    await asyncio.to_thread(_remove_folders, runtime_dir, prefix)
    return pids


def _remove_folders(runtime_dir: Path, prefix: str) -> None:
    for folder in runtime_dir.glob(f"{prefix}*"):
        shutil.rmtree(folder, ignore_errors=True)


def _carries(entry: Path, mark: bytes) -> bool:
    try:
        environ = (entry / "environ").read_bytes()
    except OSError:
        return False
    return environ.startswith(mark) or b"\0" + mark in environ


def _is_zombie(entry: Path) -> bool:
    try:
        return (entry / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (OSError, IndexError):
        return True


def _kill(pid: int, mark: bytes) -> None:
    """Kills ``pid`` if it still is the process that carries ``mark``: numbers are used again."""
    with contextlib.suppress(ProcessLookupError, OSError):
        handle = os.pidfd_open(pid)
        try:
            if _carries(_PROC / str(pid), mark):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        finally:
            os.close(handle)
