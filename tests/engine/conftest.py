"""A supervisor over the fake engine host, and what it needs from the rest of the daemon."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from pathlib import Path

import pytest

from ktd.engine.board import StatusBoard
from ktd.engine.leftovers import end_processes, id_prefix, new_engine_id
from ktd.engine.status import EnginePhase, EngineStatus, MemorySummary
from ktd.engine.supervisor import Supervisor, Timings
from ktd.enginespec import EngineSpec

FAKE_HOST = Path(__file__).with_name("fake_host.py")
COMMAND = (sys.executable, str(FAKE_HOST))


class ListLog:
    """A log that keeps what it was told."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, str, dict]] = []

    def info(self, event: str, **fields) -> None:
        self.entries.append(("info", event, fields))

    def warning(self, event: str, **fields) -> None:
        self.entries.append(("warning", event, fields))

    def error(self, event: str, **fields) -> None:
        self.entries.append(("error", event, fields))


class FakeEngines:
    """The rest of the daemon, as far as the supervisor knows it."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.specs: list[EngineSpec] = []
        self.events: list[str] = []
        self.reasons: list[str] = []
        self.bridge = None
        self.drained = asyncio.Event()
        self.drained.set()
        self.initial = ((0, 1), (2, 3))

    async def next_spec(self) -> EngineSpec:
        engine_id = new_engine_id(self.base / "state")
        spec = EngineSpec(
            engine_id=engine_id,
            runtime_dir=str(self.base / engine_id),
            model_path="/nowhere",
            sglang_args=(),
            device="cpu",
            moe_layers=(1, 3),
            num_experts=8,
            experts_per_token=1,
            slots=(2, 2),
            initial=self.initial,
        )
        self.specs.append(spec)
        return spec

    async def attach(self, bridge, spec) -> None:
        self.bridge = bridge
        self.events.append("attach")

    async def detach(self, reason: str) -> None:
        self.bridge = None
        self.events.append("detach")
        self.reasons.append(reason)

    async def drain(self, seconds: float) -> None:
        self.events.append(f"drain {seconds:g}")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.drained.wait(), seconds)

    def advice(self) -> str:
        return "Use fewer slots."


class Rig:
    """One supervisor under test."""

    def __init__(self, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.base = base
        self._monkeypatch = monkeypatch
        self.engines = FakeEngines(base)
        self.log = ListLog()
        self.num_ranks = 1
        self.timings = Timings(start=20, drain=5, backoff=(0.2, 0.4))
        self.misbehave()

    def misbehave(self, **how) -> None:
        """Sets what the next engine host does wrong."""
        self._monkeypatch.setenv("FAKE_HOST", json.dumps(how))

    @contextlib.asynccontextmanager
    async def supervised(self):
        """Runs a supervisor; it is closed on leaving."""
        self._monkeypatch.setenv("FAKE_RANKS", str(self.num_ranks))
        supervisor = Supervisor(
            self.engines,
            log=self.log,
            num_ranks=self.num_ranks,
            board=StatusBoard(EngineStatus(memory=MemorySummary())),
            timings=self.timings,
            command=COMMAND,
        )
        self.task = asyncio.create_task(supervisor.run())
        try:
            yield supervisor
        finally:
            supervisor.force()
            await asyncio.gather(self.task, return_exceptions=True)

    async def until(self, supervisor: Supervisor, *phases: EnginePhase) -> EngineStatus:
        """Waits until the engine is in one of these phases."""
        async with asyncio.timeout(30):
            async for status in supervisor.watch():
                if status.phase in phases:
                    return status
        raise AssertionError(f"ended in {supervisor.status()}")


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A rig in a short folder of its own; processes that a test leaves are ended."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    base = Path(f"/tmp/ktd-test-{os.getpid()}-{id(tmp_path) % 99991}")
    base.mkdir()
    (base / "state").mkdir()
    yield Rig(base, monkeypatch)
    await end_processes(id_prefix(base / "state"))
    for path in sorted(base.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    base.rmdir()
