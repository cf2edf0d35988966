"""A front on a real port before a real upstream on a Unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from ktd.http.auth import KeyCheck
from ktd.http.gate import Gate
from ktd.http.metrics import EngineSample, LayerSample, Metrics
from ktd.http.passthrough import Passthrough
from ktd.http.server import HttpFront, address_of, bind


class Upstream:
    """What SGLang's app looks like from the front; keeps what it was sent and what became of it."""

    def __init__(self) -> None:
        self.arrived: list[dict] = []
        self.outcome: asyncio.Queue[str] = asyncio.Queue()
        self.next_piece = asyncio.Queue()
        self.connections: list[asyncio.Transport] = []

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_post("/v1/stream", self.stream)
        app.router.add_route("*", "/{tail:.*}", self.show)
        return app

    async def show(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.arrived.append(
            {
                "method": request.method,
                "path": request.raw_path,
                "headers": request.raw_headers,
                "body": body,
            }
        )
        status = int(request.query.get("status", 200))
        if status == 304 or request.method == "HEAD":
            return web.Response(status=status, headers={"X-Up": "1"})
        return web.Response(
            status=status,
            reason="As You Like",
            body=b"\x1f\x8b not really gzip \x00\xff",
            headers={
                "Content-Type": "text/x-odd; q=1",
                "Content-Encoding": "gzip",
                "X-Up": "1",
                "Set-Cookie": "a=b",
                "Keep-Alive": "timeout=5",
            },
        )

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """Sends what the test puts into ``next_piece``; None ends it, "die" cuts it."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        try:
            if request.query.get("late") is None:
                await response.prepare(request)
            while (piece := await self.next_piece.get()) is not None:
                if piece == "die":
                    request.transport.abort()
                    await asyncio.sleep(10)
                if not response.prepared:
                    await response.prepare(request)
                await response.write(piece)
            await response.write_eof()
        except (asyncio.CancelledError, ConnectionError):
            self.outcome.put_nowait("cancelled")
            raise
        self.outcome.put_nowait("finished")
        return response


class Source:
    """Health and metrics as a test sets them."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.reason = ""
        self.engine = EngineSample(
            info={"version": "1.2.3"},
            serving=True,
            revision=7,
            total_experts=64,
            layers=(LayerSample(1, 30, 10, 4), LayerSample(3, 0, 0, 2)),
            swaps={"succeeded": 5, "failed": 1},
            swap_bytes=4096,
            move_calls=6,
            move_call_seconds=0.25,
        )

    def complaint(self) -> str:
        return self.reason

    def sample(self) -> EngineSample:
        return self.engine

    def in_flight(self) -> int:
        return self.gate.in_flight


class Rig:
    """The front under test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.gate = Gate()
        self.upstream = Upstream()
        self.source = Source(self.gate)
        self.key: str | None = None
        self.url = ""

    @property
    def socket(self) -> Path:
        return self.folder / "http.sock"

    @contextlib.asynccontextmanager
    async def serving(self):
        """Upstream and front run, the gate is open; yields a client session."""
        runner = web.AppRunner(self.upstream.app(), handler_cancellation=True, access_log=None)
        await runner.setup()
        await web.UnixSite(runner, str(self.socket)).start()
        sock = bind("127.0.0.1", 0)
        self.url = address_of(sock)
        metrics = Metrics(self.source)
        passthrough = Passthrough(self.gate, KeyCheck(self.key), metrics)
        self.gate.open(self.socket)
        async with (
            HttpFront(sock, passthrough, self.source, metrics),
            aiohttp.ClientSession(auto_decompress=False) as session,
        ):
            try:
                yield session
            finally:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(runner.cleanup(), 2)


@pytest.fixture
def rig():
    """A rig whose sockets lie in a short path."""
    folder = Path(tempfile.mkdtemp(prefix=f"ktd-http-{os.getpid()}-"))
    yield Rig(folder)
    shutil.rmtree(folder)
