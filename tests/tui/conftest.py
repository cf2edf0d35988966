from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from ktd_tui.app import MonitorApp
from tests.rpc.fake_daemon import FakeDaemon, fake_daemon

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@asynccontextmanager
async def never() -> AsyncIterator[None]:
    """A daemon that does not answer."""
    await asyncio.Event().wait()
    yield


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "COLORTERM", "TEXTUAL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(name="still")
def _still() -> MonitorApp:
    """An app without a daemon: a test says what arrives."""
    return MonitorApp(never, "/run/ktd/ktd.sock")


@pytest.fixture(name="daemon")
async def _daemon(tmp_path: Path) -> AsyncIterator[FakeDaemon]:
    async with fake_daemon(tmp_path) as daemon:
        yield daemon
