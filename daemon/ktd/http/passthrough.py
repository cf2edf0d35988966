"""OpenAI bytes in, OpenAI bytes out: ``/v1`` goes to SGLang's own app and comes back unchanged.

Method, path and query, headers (but those that belong to one connection) and body are passed on
as they came, both ways, piece by piece as they arrive. When the client goes, the request to the
engine is closed at once, which makes SGLang abort it.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from pathlib import Path
from typing import Protocol

import aiohttp
from aiohttp import hdrs, web

from ktd.http import errors
from ktd.http.auth import KeyCheck
from ktd.http.gate import Gate
from ktd.http.upstream import EngineConnection, Headers, Upstream

# RFC 9110, section 7.6.1, and what speaks of this hop alone. aiohttp answers Expect itself.
_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"expect",
    }
)
# The engine may resolve these, and then "/v1/../x" would be another route.
_DOTS = re.compile(r"(?:^|[/\\]|%2f|%5c)(?:\.|%2e){1,2}(?:$|[/\\?#]|%2f|%5c)", re.IGNORECASE)
_RETRY_SECONDS = 5
_SMALL_BODY = 1 << 20
# How long an answer's headers wait for the first piece of its body.
_TOGETHER_SECONDS = 0.001
_TEXT = ("utf-8", "surrogateescape")  # how aiohttp reads and writes headers
# What nginx logs when the client goes first.
_CLIENT_WENT = 499


class RequestLog(Protocol):
    """Counts requests; ``ktd.http.metrics`` satisfies it."""

    def finished(self, status: int, seconds: float, first_byte: float | None) -> None:
        """One request has ended: its status, how long it took, and the time to its first byte."""
        ...


class Passthrough:
    """The handler of ``/v1``; any number of requests at once, without timeouts."""

    def __init__(self, gate: Gate, key: KeyCheck, log: RequestLog) -> None:
        self._gate = gate
        self._key = key
        self._log = log
        self._upstream = Upstream()

    async def close(self) -> None:
        """Closes the connections to the engine that are free."""
        self._upstream.close()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answers one request to ``/v1``."""
        start = time.perf_counter()
        # Browsers send no key with the question whether they may send one.
        if request.method != hdrs.METH_OPTIONS and not self._key.accepts(request.headers):
            return errors.unauthorized()
        if _DOTS.search(request.raw_path):
            return errors.not_found(request.path)
        socket = self._gate.upstream
        if socket is None:
            return errors.unavailable(self._gate.closed_reason, _RETRY_SECONDS)
        with self._gate.passing():
            return await self._forward(request, socket, start)

    async def _forward(
        self, request: web.Request, socket: Path, start: float
    ) -> web.StreamResponse:
        exchange = _Exchange(request, start)
        try:
            body = await _body(request)
            connection = await self._upstream.connection(socket)
            try:
                await exchange.run(connection, body)
            finally:
                self._upstream.give_back(connection, socket)
        except OSError as error:  # of either connection
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
        self, connection: EngineConnection, body: bytes | aiohttp.StreamReader | None
    ) -> None:
        """Sends the request and passes the answer on as it comes."""
        upload = self._send(connection, body)
        try:
            await connection.answered()
            self.status = connection.status
            response = _Answer(status=connection.status, reason=connection.reason)
            response.headers.extend(
                (name.decode(*_TEXT), value.decode(*_TEXT))
                for name, value in _end_to_end(connection.headers)
            )
            self._response = response
            writer = await response.prepare(self._request)
            if not connection.has_piece():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_TOGETHER_SECONDS):
                        await connection.news()
                if writer is not None and not connection.has_piece():
                    writer.send_headers()
            piece = await connection.piece()
            self.first_byte = time.perf_counter() - self._start
            while piece:
                await response.write(piece)
                piece = await connection.piece()
            await response.write_eof()
        finally:
            if upload is not None and not upload.done():
                # The answer came before the request was over: what is left of it has no reader.
                connection.close()
                upload.cancel()

    def _send(
        self, connection: EngineConnection, body: bytes | aiohttp.StreamReader | None
    ) -> asyncio.Task[None] | None:
        """Sends the request; the task that sends the rest of a large body, if there is one."""
        request = self._request
        headers = _end_to_end(request.raw_headers)
        if body is None or isinstance(body, bytes):
            connection.send(request.method, request.raw_path, headers, body or b"")
            return None
        chunked = request.content_length is None
        if chunked:
            headers.append((b"transfer-encoding", b"chunked"))
        connection.send(request.method, request.raw_path, headers, b"")
        return asyncio.create_task(_upload(connection, body, chunked=chunked))

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


async def _upload(
    connection: EngineConnection, body: aiohttp.StreamReader, *, chunked: bool
) -> None:
    """Sends a large body as it comes; a client or an engine that goes ends it."""
    try:
        async for piece in body.iter_any():
            await connection.send_more(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
        if chunked:
            await connection.send_more(b"0\r\n\r\n")
    except (web.RequestPayloadError, aiohttp.ClientError, OSError):
        # Half a request must not be taken for a whole one; who waits for the answer is told.
        connection.close()


def _end_to_end(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Headers without those of one hop, nor those that ``Connection`` names."""
    lowered = [(name.lower(), name, value) for name, value in headers]
    dropped = _HOP_BY_HOP.union(
        token.strip().lower()
        for low, _, value in lowered
        if low == b"connection"
        for token in value.split(b",")
    )
    return [(name, value) for low, name, value in lowered if low not in dropped]
