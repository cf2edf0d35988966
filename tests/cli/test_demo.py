"""`ktd demo` with a real engine."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from tests.cli.running import environment, ktd

pytestmark = pytest.mark.engine


def processes_of(folder: Path) -> list[int]:
    """Processes whose environment or command line names the demo's folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            told = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:
            continue
        if f"{folder}/ktd-demo-".encode() in told:
            found.append(int(entry.name))
    return found


async def test_the_demo_shows_more_hits_and_the_same_text(tmp_path: Path) -> None:
    """The same prompts hit more slots after `frequency`; greedy texts differ by ties at most."""
    result = await ktd("demo", "--json", "--tokens", "24", TMPDIR=str(tmp_path), seconds=570)
    assert result.code == 0, result.err
    found = result.json
    assert found["gpu_hit_rate_after"]["all"] > found["gpu_hit_rate_before"]["all"]
    assert found["moves"] > 0
    assert found["pieces_during_swap"] > 0
    assert len(found["differences"]) == 4
    assert "stopped cleanly" in result.err
    assert list(tmp_path.iterdir()) == []
    assert processes_of(tmp_path) == []


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
async def test_an_interrupted_demo_leaves_nothing(tmp_path: Path, how: signal.Signals) -> None:
    """Whether by Ctrl-C or told to stop: daemon, engine and folder are gone."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "ktd", "demo"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment(TMPDIR=str(tmp_path)),
    )
    assert process.stdout is not None
    async with asyncio.timeout(120):
        while b"starting" not in await process.stdout.readline():
            pass
    assert len(processes_of(tmp_path)) > 0
    process.send_signal(how)
    async with asyncio.timeout(120):
        _, err = await process.communicate()
    assert process.returncode == 130
    assert err == b""
    assert list(tmp_path.iterdir()) == []
    assert processes_of(tmp_path) == []
