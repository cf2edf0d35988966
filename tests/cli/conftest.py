from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cli.fake_front import FakeFront, fake_front
from tests.rpc.fake_daemon import FakeDaemon, fake_daemon

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture(name="daemon")
async def _daemon(tmp_path: Path) -> AsyncIterator[FakeDaemon]:
    async with fake_daemon(tmp_path) as daemon:
        yield daemon


@pytest.fixture(name="front")
async def _front() -> AsyncIterator[FakeFront]:
    async with fake_front() as front:
        yield front
