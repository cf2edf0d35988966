"""Runs `ktd` on a pseudo-terminal, as somebody who types."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import sys
import termios
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from tests.cli.running import environment

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class TerminalSession:
    """A running command: type, read what was shown, wait for the end."""

    def __init__(self, controller: int, process: asyncio.subprocess.Process) -> None:
        self._controller = controller
        self._process = process
        self._shown = bytearray()
        self._news = asyncio.Event()
        asyncio.get_running_loop().add_reader(controller, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._controller, 65536)
        except OSError:  # The command has closed the terminal.
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._controller)
        self._shown.extend(data)
        self._news.set()

    def type(self, text: str) -> None:
        os.write(self._controller, text.encode())

    async def shows(self, text: str, times: int = 1) -> str:
        """Waits until ``text`` has been shown so often; returns everything that was."""
        async with asyncio.timeout(30):
            while self._shown.count(text.encode()) < times:
                self._news.clear()
                await self._news.wait()
        return self._shown.decode()

    async def shows_after(self, earlier: str, text: str) -> None:
        """Waits until ``text`` has been shown behind the last ``earlier``."""
        async with asyncio.timeout(30):
            while text.encode() not in self._shown.rpartition(earlier.encode())[2]:
                self._news.clear()
                await self._news.wait()

    async def end(self) -> int:
        async with asyncio.timeout(30):
            return await self._process.wait()


@asynccontextmanager
async def on_terminal(*arguments: str, **env: str) -> AsyncIterator[TerminalSession]:
    """Starts one command with a terminal of its own; Ctrl-C works in it."""
    controller, terminal = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "ktd", *arguments),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=environment(TERM="xterm", **env),
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    session = TerminalSession(controller, process)
    try:
        yield session
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        asyncio.get_running_loop().remove_reader(controller)
        os.close(terminal)
        os.close(controller)
