"""A fake daemon and a client that is connected to it."""

import pytest

from ktd.client import KtdClient
from tests.rpc.fake_daemon import fake_daemon


@pytest.fixture
async def daemon(tmp_path):
    async with fake_daemon(tmp_path) as daemon:
        yield daemon


@pytest.fixture
async def client(daemon):
    async with KtdClient(daemon.socket) as client:
        yield client
