"""A daemon over the fake engine host, with folders, port and socket of its own."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import aiohttp
import pytest

from ktd.app.evidence import Pairs, StartEvidence
from ktd.app.starts import EngineStarts
from ktd.app.statistics import KnownCounts
from ktd.client.client import KtdClient
from ktd.config.settings import Settings
from ktd.engine.leftovers import end_processes, id_prefix, processes_of
from ktd.placement.manager import PlacementManager
from ktd.stats.hub import StatsHub
from ktd.stats.profile_store import ProfileStore
from ktd.stats.profiles import Profiles

SCRIPT = Path(__file__).with_name("serve_fake.py")
MODEL = Path(__file__).parents[2] / "models/ktd-tiny"


class Daemon:
    """One daemon process and what a test asks of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state, self.run_dir = folder / "state", folder / "run"
        self.socket = self.run_dir / "ktd.sock"
        self.environment = {"FAKE_RANKS": "1"}
        self.process: asyncio.subprocess.Process | None = None
        self.url = ""
        self.log = ""

    def misbehave(self, **how) -> None:
        """What the next engine does wrong."""
        self.environment["FAKE_HOST"] = json.dumps(how)

    async def start(self, *argv: str, model: Path | str = MODEL) -> None:
        """Starts it and reads its log in the background."""
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, str(SCRIPT), str(model), "--state-dir", str(self.state),
            "--runtime-dir", str(self.run_dir), "--log-format", "json", "--port", "0", *argv,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                **self.environment,
            },
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        self.log = ""
        self._reader = asyncio.create_task(self._read())

    async def serving(self, *argv: str) -> None:
        """Starts it and waits until requests are served."""
        await self.start(*argv)
        await self.logged("engine ready")

    async def logged(self, text: str) -> None:
        """Waits until the log has this."""
        async with asyncio.timeout(30):
            while text not in self.log:
                if self.process.returncode is not None:
                    await self._reader
                    assert text in self.log, self.log
                await asyncio.sleep(0.02)
        self.url = re.search(r'"http": "([^"]+)"', self.log).group(1)

    async def ended(self) -> int:
        """Waits for its end."""
        async with asyncio.timeout(40):
            await self._reader
            return await self.process.wait()

    async def stop(self) -> int:
        """SIGTERM, and its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return await self.ended()

    def sentence(self) -> str:
        """The last line of standard error: the error."""
        return self.log.splitlines()[-1]

    def left(self) -> list:
        """Processes and files of engines."""
        mine = ("ktd.sock.lock", "requests.log", "moves.jsonl")  # the fake host's notes
        files = [path.name for path in self.run_dir.glob("*") if path.name not in mine]
        return processes_of(id_prefix(self.state)) + files

    def client(self) -> KtdClient:
        """A client of its API."""
        return KtdClient(self.socket)

    async def _read(self) -> None:
        while data := await self.process.stderr.read(1 << 16):
            self.log += data.decode()


@pytest.fixture
async def daemon():
    """Not started yet; whatever is left of it is ended."""
    folder = Path(tempfile.mkdtemp(prefix="ktd-app-", dir="/tmp"))
    daemon = Daemon(folder)
    daemon.misbehave()
    yield daemon
    if daemon.process is not None and daemon.process.returncode is None:
        daemon.process.kill()
        await daemon.ended()
    await end_processes(id_prefix(daemon.state))
    shutil.rmtree(folder)


@pytest.fixture
async def http():
    """A client of the OpenAI front."""
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
def made(tmp_path):
    """Makes what plans starts, under settings."""

    def make(manager=None, device="cpu", **changes):
        settings = Settings(
            model=str(MODEL),
            state_dir=tmp_path / "state",
            runtime_dir=tmp_path / "run",
            socket=tmp_path / "ktd.sock",
            **changes,
        )
        store = ProfileStore(settings.state_dir)
        known = KnownCounts(store, Profiles(store, StatsHub(), settings.model))
        pairs = Pairs()

        async def find_model(_settings):
            return MODEL

        starts = EngineStarts(
            settings,
            device=device,
            manager=manager or PlacementManager(),
            find_model=find_model,
            evidence=StartEvidence(settings, "cpu", known, pairs),
        )
        return starts, pairs

    return make
