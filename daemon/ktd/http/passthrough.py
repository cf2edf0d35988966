"""OpenAI bytes in, OpenAI bytes out: ``/v1`` goes to SGLang's own app and comes back unchanged.

Method, path and query, headers (but those that belong to one connection) and body are passed on
as they came, both ways, piece by piece as they arrive. When the client goes, the request to the
engine is closed at once, which makes SGLang abort it.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import aiohttp
from aiohttp import hdrs, web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from ktd.http import errors
from ktd.http.auth import KeyCheck
from ktd.http.gate import Gate

# RFC 9110, section 7.6.1, and what speaks of this hop alone. aiohttp answers Expect itself.
_HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "expect",
    }
)
# aiohttp would add these to what the client sent.
_NOT_ADDED = (hdrs.USER_AGENT, hdrs.ACCEPT, hdrs.ACCEPT_ENCODING, hdrs.CONTENT_TYPE)
# The engine may resolve these, and then "/v1/../x" would be another route.
_DOTS = re.compile(r"(?:^|[/\\]|%2f|%5c)(?:\.|%2e){1,2}(?:$|[/\\?#]|%2f|%5c)", re.IGNORECASE)
_RETRY_SECONDS = 5
# Well below the time after which the engine closes an idle connection (uvicorn: 5 s unless told
# otherwise): one that it closes in the moment of its use would fail a request that may not be
# sent twice.
_IDLE_SECONDS = 3.0
_SMALL_BODY = 1 << 20
# How long an answer's headers wait for the first piece of its body.
_TOGETHER_SECONDS = 0.001
# What nginx logs when the client goes first.
_CLIENT_WENT = 499


class RequestLog(Protocol):
    """Counts requests; ``ktd.http.metrics`` satisfies it."""

    def finished(self, status: int, seconds: float, first_byte: float | None) -> None:
        """One request has ended: its status, how long it took, and the time to its first byte."""
        ...


class Passthrough:
    """The handler of ``/v1``; one upstream session per engine, without limits or timeouts."""

    def __init__(self, gate: Gate, key: KeyCheck, log: RequestLog) -> None:
        self._gate = gate
        self._key = key
        self._log = log
        self._session: aiohttp.ClientSession | None = None
        self._socket: Path | None = None

    async def close(self) -> None:
        """Closes the upstream session."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answers one request to ``/v1``."""
        start = time.perf_counter()
        # Browsers send no key with the question whether they may send one.
        if request.method != hdrs.METH_OPTIONS and not self._key.accepts(request.headers):
            return errors.unauthorized()
        if _DOTS.search(request.raw_path):
            return errors.not_found(request.path)
        upstream = self._gate.upstream
        if upstream is None:
            return errors.unavailable(self._gate.closed_reason, _RETRY_SECONDS)
        with self._gate.passing():
            return await self._forward(request, await self._session_to(upstream), start)

    async def _session_to(self, socket: Path) -> aiohttp.ClientSession:
        if self._session is None or self._socket != socket:
            await self.close()
            self._session = aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(
                    path=str(socket), limit=0, keepalive_timeout=_IDLE_SECONDS
                ),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
                auto_decompress=False,
                skip_auto_headers=_NOT_ADDED,
                cookie_jar=aiohttp.DummyCookieJar(),
                read_bufsize=1 << 18,
                max_line_size=1 << 16,
                max_field_size=1 << 16,
            )
            self._socket = socket
        return self._session

    async def _forward(
        self, request: web.Request, session: aiohttp.ClientSession, start: float
    ) -> web.StreamResponse:
        exchange = _Exchange(request, start)
        try:
            await exchange.run(session, await _body(request))
        except (aiohttp.ClientError, OSError) as error:
            return exchange.failed(error)
        finally:
            elapsed = time.perf_counter() - start
            self._log.finished(exchange.status, elapsed, exchange.first_byte)
        return exchange.answered


class _Answer(web.StreamResponse):
    """A streamed answer whose headers wait for the first piece of its body.

    SGLang sends both within microseconds; passing them on in two writes would wake the client
    twice. aiohttp's own ``Response`` waits by the same attribute.
    """

    _send_headers_immediately = False


class _Exchange:
    """One request on its way to the engine and its answer on the way back."""

    def __init__(self, request: web.Request, start: float) -> None:
        self._request = request
        self._start = start
        self._response: web.StreamResponse | None = None
        self.status = _CLIENT_WENT
        self.first_byte: float | None = None

    @property
    def answered(self) -> web.StreamResponse:
        """The answer, passed on completely."""
        if self._response is None:
            raise RuntimeError("nothing was exchanged")
        return self._response

    async def run(
        self, session: aiohttp.ClientSession, body: bytes | aiohttp.StreamReader | None
    ) -> None:
        """Sends the request and passes the answer on as it comes."""
        request = self._request
        async with session.request(
            request.method,
            URL(f"http://ktd{request.raw_path}", encoded=True),
            headers=_end_to_end(request.headers),
            data=body,
            allow_redirects=False,
        ) as answer:
            self.status = answer.status
            response = _Answer(status=answer.status, reason=answer.reason)
            response.headers.extend(_end_to_end(answer.headers))
            self._response = response
            writer = await response.prepare(request)
            try:
                async with asyncio.timeout(_TOGETHER_SECONDS):
                    piece = await answer.content.readany()
            except TimeoutError:
                if writer is not None:
                    writer.send_headers()
                piece = await answer.content.readany()
            self.first_byte = time.perf_counter() - self._start
            while piece:
                await response.write(piece)
                piece = await answer.content.readany()
            await response.write_eof()

    def failed(self, error: Exception) -> web.StreamResponse:
        """What the client gets when one of the two connections broke."""
        transport = self._request.transport
        if transport is None or transport.is_closing():
            self.status = _CLIENT_WENT
            raise error
        self.status = 502
        if self._response is None or not self._response.prepared:
            return errors.bad_gateway(
                f"The engine ended while it had this request ({type(error).__name__}); "
                "it is started again, so try once more."
            )
        # Half an answer is out: cutting the connection is the only way to say so.
        transport.abort()
        return self._response


async def _body(request: web.Request) -> bytes | aiohttp.StreamReader | None:
    """The whole body where it is small, which most are; else the stream of it."""
    if not request.body_exists:
        return None
    if request.content_length is not None and request.content_length <= _SMALL_BODY:
        return await request.content.read()
    return request.content


def _end_to_end(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    """Headers without those of one hop, nor those that ``Connection`` names."""
    named: Iterable[str] = (
        token.strip().lower()
        for value in headers.getall(hdrs.CONNECTION, ())
        for token in value.split(",")
    )
    dropped = _HOP_BY_HOP.union(named)
    return CIMultiDict((k, v) for k, v in headers.items() if k.lower() not in dropped)
