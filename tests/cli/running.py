"""Runs `ktd` as a user does: a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ktd.cli.program import run

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


@dataclass(frozen=True)
class Result:
    """What a finished command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def environment(**changes: str) -> dict[str, str]:
    """The environment without what would make a run depend on the machine."""
    dropped = ("KTD_", "NO_COLOR", "XDG_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
    return {**kept, "COLUMNS": "100", **changes}


def ktd_here(capsys: pytest.CaptureFixture[str], *arguments: str) -> Result:
    """Runs one command in this process: quicker, for what needs no daemon beside it."""
    code = run(list(arguments))
    shown = capsys.readouterr()
    return Result(code, shown.out, shown.err)


async def ktd(
    *arguments: str, socket: Path | None = None, stdin: str = "", seconds: float = 60, **env: str
) -> Result:
    """Runs one command to its end; a hang is a failure of the test."""
    if socket is not None:
        env["KTD_SOCKET"] = str(socket)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "ktd",
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment(**env),
    )
    try:
        async with asyncio.timeout(seconds):
            out, err = await process.communicate(stdin.encode())
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    assert process.returncode is not None
    assert b"Traceback" not in err, err.decode()
    return Result(process.returncode, out.decode(), err.decode())
