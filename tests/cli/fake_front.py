"""An OpenAI front that answers from a script, and remembers what it was asked."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@dataclass
class FakeFront:
    """``pieces`` are streamed as an answer; ``status`` other than 200 refuses instead."""

    address: str = ""
    pieces: list[str] = field(default_factory=lambda: ["Hel", "lo ", "wörld"])
    status: int = 200
    error: str = "refused"
    api_key: str = ""
    breaks_off: bool = False
    waits: asyncio.Event | None = None
    requests: list[dict[str, Any]] = field(default_factory=list)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    _news: asyncio.Event = field(default_factory=asyncio.Event)

    async def asked(self, times: int) -> None:
        """Waits until that many requests have come."""
        async with asyncio.timeout(30):
            while len(self.requests) < times:
                self._news.clear()
                await self._news.wait()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(await request.json())
        self._news.set()
        if self.api_key and request.headers.get("Authorization") != f"Bearer {self.api_key}":
            return web.json_response({"error": {"message": "wrong key"}}, status=401)
        if self.status != 200:
            return web.json_response({"error": {"message": self.error}}, status=self.status)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        try:
            await self._stream(response)
        except (ConnectionResetError, asyncio.CancelledError):
            self.cancelled.set()
            raise
        return response

    async def _stream(self, response: web.StreamResponse) -> None:
        for piece in self.pieces:
            await _event(response, {"choices": [{"delta": {"content": piece}}]})
        if self.waits is not None:
            await self.waits.wait()
        if self.breaks_off:
            return
        await _event(response, {"choices": [{"delta": {}, "finish_reason": "stop"}]})
        await _event(response, {"choices": [], "usage": {"completion_tokens": 7}})
        await response.write(b"data: [DONE]\n\n")


async def _event(response: web.StreamResponse, value: dict[str, Any]) -> None:
    await response.write(f"data: {json.dumps(value)}\n\n".encode())


@asynccontextmanager
async def fake_front() -> AsyncIterator[FakeFront]:
    """Serves a front on a free port."""
    front = FakeFront()
    application = web.Application()
    application.router.add_post("/v1/chat/completions", front.handle)
    runner = web.AppRunner(application, handler_cancellation=True)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        front.address = f"http://{host}:{port}"
        yield front
    finally:
        if front.waits is not None:
            front.waits.set()
        await runner.cleanup()
