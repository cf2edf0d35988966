"""Runs the monitor, or prints one frame; shared by `ktd top` and `ktd-tui`."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING, Any

from ktd.client import KtdClient
from ktd_tui.frame import read_frame

if TYPE_CHECKING:
    from pathlib import Path


def launch(socket: Path, *, once: bool, as_json: bool) -> int:
    """Returns the exit code.

    Args:
        socket: The daemon's gRPC socket.
        once: Print one frame's data and return.
        as_json: The same; a screen that is live cannot be JSON.

    Raises:
        KtdError: with ``once``, the daemon cannot be reached.
    """
    if once or as_json:
        frame = asyncio.run(_frame(socket))
        sys.stdout.write((json.dumps(frame) if as_json else _text(frame)) + "\n")
        return 0
    # Textual takes a quarter of a second to import: only who looks at the screen pays for it.
    from ktd_tui.app import MonitorApp  # noqa: PLC0415

    app = MonitorApp(lambda: KtdClient(socket), str(socket))
    app.run()
    return app.return_code or 0


async def _frame(socket: Path) -> dict[str, Any]:
    async with KtdClient(socket) as client:
        return await read_frame(client)


def _text(frame: dict[str, Any]) -> str:
    """A frame as a few lines, for `--once` without `--json`."""
    lines = [f"{frame['phase']}  {frame['message']}"]
    if frame["layers"]:
        lines.append(
            f"{frame['tokens_per_second'] or 0:.1f} tokens/s, "
            f"GPU hit rate {100 * (frame['gpu_hit_rate'] or 0):.1f} %, "
            f"revision {frame['revision']} ({frame['origin']})"
        )
    lines.extend(f"! {condition['message']}" for condition in frame["conditions"])
    return "\n".join(lines)
