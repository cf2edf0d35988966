"""Waiting for the end of a process that need not be a child, without polling."""

from __future__ import annotations

import asyncio
import os


async def process_ended(pid: int) -> None:
    """Returns as soon as the process has ended (a child: before it is reaped), or is not there."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(handle, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(handle)
        os.close(handle)
