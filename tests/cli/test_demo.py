"""`ktd demo` with a real engine."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cli.running import environment, ktd

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.engine


@pytest.fixture(name="short")
def _short() -> Iterator[Path]:
    """An empty folder whose name leaves room for those of sockets."""
    with tempfile.TemporaryDirectory(prefix="ktd-t-", dir="/tmp") as folder:
        yield Path(folder)


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


async def test_the_demo_shows_more_hits_and_the_same_text(short: Path) -> None:
    """The same prompts hit more slots after `frequency`; greedy texts differ by ties at most."""
    result = await ktd("demo", "--json", "--tokens", "24", TMPDIR=str(short), seconds=570)
    assert result.code == 0, result.err
    found = result.json
    assert found["gpu_hit_rate_after"]["all"] > found["gpu_hit_rate_before"]["all"]
    assert found["moves"] > 0
    assert found["pieces_during_swap"] > 0
    assert len(found["differences"]) == 4
    assert "stopped cleanly" in result.err
    assert list(short.iterdir()) == []
    assert processes_of(short) == []


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
async def test_an_interrupted_demo_leaves_nothing(short: Path, how: signal.Signals) -> None:
    """Whether by Ctrl-C or told to stop: daemon, engine and folder are gone."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "ktd", "demo"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment(TMPDIR=str(short)),
    )
    assert process.stdout is not None
    async with asyncio.timeout(120):
        while line := await process.stdout.readline():
            if b"starting" in line:
                break
        else:
            pytest.fail("the demo ended before its engine started")
    assert len(processes_of(short)) > 0
    process.send_signal(how)
    async with asyncio.timeout(120):
        _, err = await process.communicate()
    assert process.returncode == 130
    assert err == b""
    assert list(short.iterdir()) == []
    assert processes_of(short) == []
