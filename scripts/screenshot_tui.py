"""Writes docs/images/top.svg: `ktd top` as it looks while a daemon is busy.

With --socket it shows that daemon; without, a fake one with made-up traffic, whose experts are
placed by `frequency` before the picture is taken. Run it in the checkout:

    .venv/bin/python scripts/screenshot_tui.py [--socket PATH]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

TOP = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TOP))

from ktd.client import KtdClient  # noqa: E402  # the tests' fakes are found through the line above
from ktd.placement.model import ModelShape  # noqa: E402
from ktd_tui.app import MonitorApp  # noqa: E402
from tests.rpc.fake_daemon import fake_daemon  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_SHAPE = ModelShape(tuple(range(12)), 32, (8,) * 12, 98_304)
_SIZE = (84, 22)


@contextlib.asynccontextmanager
async def made_up_daemon() -> AsyncIterator[Path]:
    """A fake daemon whose model is busy."""
    with tempfile.TemporaryDirectory(prefix="ktd-picture-") as folder:
        async with fake_daemon(Path(folder), shape=_SHAPE) as daemon:

            async def work() -> None:
                while True:
                    daemon.traffic.decode(4)
                    await asyncio.sleep(0.05)

            working = asyncio.create_task(work())
            try:
                await asyncio.sleep(2)
                yield daemon.socket
            finally:
                working.cancel()


async def take(socket: Path, seconds: float, *, place: bool) -> str:
    """Runs the monitor without a terminal and returns what it shows, as SVG."""
    app = MonitorApp(lambda: KtdClient(socket), str(socket))
    async with app.run_test(size=_SIZE) as pilot:
        await pilot.pause(seconds / 2)
        if place:
            async with KtdClient(socket) as client:
                await client.apply_and_wait(strategy="frequency")
        await pilot.pause(seconds / 2)
        return app.export_screenshot(title="ktd top")


async def picture(socket: Path | None, seconds: float) -> str:
    """The picture of one daemon, or of a made-up one."""
    if socket is not None:
        return await take(socket, seconds, place=False)
    async with made_up_daemon() as made_up:
        return await take(made_up, seconds, place=True)


def main() -> None:
    """Parses the arguments and takes the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--socket", type=Path, help="a daemon that runs (default: a fake one)")
    parser.add_argument("--seconds", type=float, default=16.0, help="how long to watch before")
    parser.add_argument("--output", type=Path, default=TOP / "docs/images/top.svg")
    args = parser.parse_args()
    svg = asyncio.run(picture(args.socket, args.seconds))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(svg, encoding="utf-8")
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
