"""Connections to the engine's own HTTP server on its Unix socket.

As little as passing bytes on needs: requests are written as they came, answers are read by llhttp
(``httptools``), the parser of Node.js. A general client's cookies, redirects, tasks and URL objects
cost about as much as both hops together, in front of every first token.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import httptools

# Well below the time after which the engine closes an idle connection (uvicorn: 5 s unless told
# otherwise): one that it closes in the moment of its use would fail a request that may not be
# sent twice.
_IDLE_SECONDS = 3.0
_CONNECT_SECONDS = 10.0
_MOST_BUFFERED = 1 << 18  # bytes of an answer that wait here before the engine has to
_FIRST_FINAL_STATUS = 200
_NO_BODY = frozenset({204, 304})

Headers = Sequence[tuple[bytes, bytes]]


class EngineGone(ConnectionError):
    """The engine closed the connection, or sent what is not HTTP, before its answer was whole."""


class EngineConnection(asyncio.Protocol):
    """One connection to the engine; one request at a time.

    Attributes:
        status: Of the answer, from ``answered`` on.
        reason: Its text.
        headers: Name and value as they came.
    """

    def __init__(self) -> None:
        self.status = 0
        self.reason = ""
        self.headers: list[tuple[bytes, bytes]] = []
        self._transport: asyncio.Transport | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._closed = False
        self.idle_since = 0.0
        self._begin(head_only=False)

    def _begin(self, *, head_only: bool) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._head_only = head_only
        self.status, self.reason, self.headers = 0, "", []
        self._has_head = False
        self._has_end = False
        self._to_end_of_connection = False
        self._stays_open = False
        self._pieces: deque[bytes] = deque()
        self._buffered = 0
        self._paused = False
        self._failure: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    # What a request does.

    @property
    def reusable(self) -> bool:
        """Whether another request may follow on this connection."""
        return self._has_end and self._stays_open and not self._closed

    @property
    def usable(self) -> bool:
        """Whether it is open and was idle only shortly."""
        return not self._closed and time.monotonic() - self.idle_since < _IDLE_SECONDS

    def send(self, method: str, target: str, headers: Headers, body: bytes) -> None:
        """Sends a request's head and what there is of its body.

        Args:
            method: As the client wrote it.
            target: Path and query, as the client wrote them.
            headers: Without those of one hop.
            body: Written as it is, so already chunked if a header says so.
        """
        self._begin(head_only=method == "HEAD")
        lines = [f"{method} {target} HTTP/1.1".encode()]
        lines += [b"%b: %b" % header for header in headers]
        self._write(b"\r\n".join([*lines, b"", body]) if body else b"\r\n".join([*lines, b"", b""]))

    async def send_more(self, body: bytes) -> None:
        """Sends more of the body, as fast as the engine takes it."""
        await self._writable.wait()
        self._write(body)

    async def answered(self) -> None:
        """Waits for the answer's head.

        Raises:
            EngineGone: It will not come.
        """
        while not self._has_head:
            await self.news()

    def has_piece(self) -> bool:
        """Whether ``piece`` would return at once."""
        return bool(self._pieces) or self._has_end or self._failure is not None

    async def piece(self) -> bytes:
        """What has come of the body since the last piece; empty at its end.

        Raises:
            EngineGone: The rest will not come.
        """
        while not self._pieces:
            if self._has_end:
                return b""
            await self.news()
        joined = b"".join(self._pieces) if len(self._pieces) > 1 else self._pieces[0]
        self._pieces.clear()
        self._buffered = 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return joined

    def close(self) -> None:
        """Ends the connection, and with it a request that is not answered: SGLang aborts it."""
        self._closed = True
        if self._transport is not None:
            self._transport.abort()

    def _write(self, data: bytes) -> None:
        if self._transport is None or self._closed:
            raise EngineGone("the connection is closed")
        self._transport.write(data)

    async def news(self) -> None:
        """Waits until more has come.

        Raises:
            EngineGone: Nothing more will.
        """
        if self._failure is not None:
            raise self._failure
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
        if self._failure is not None and not self._pieces:
            raise self._failure

    def _tell(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, message: str) -> None:
        if not self._has_end and self._failure is None:
            self._failure = EngineGone(message)
        self._tell()

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is there."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Bytes of an answer; some that nobody asked for end the connection."""
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(f"its answer is not HTTP/1.1 ({error})")
            self.close()
        if self._buffered > _MOST_BUFFERED and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._tell()

    def connection_lost(self, error: Exception | None) -> None:
        """The engine, or ``close``, ended the connection."""
        self._closed = True
        self._writable.set()
        if error is None and self._has_head and self._to_end_of_connection:
            self._has_end = True
        self._fail("it closed the connection")

    def pause_writing(self) -> None:
        """The engine takes no more for now."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """It does again."""
        self._writable.set()

    # What the parser calls.

    def on_status(self, reason: bytes) -> None:
        """The text after the status."""
        self.reason += reason.decode("utf-8", "surrogateescape")

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is whole; 1xx are not yet the answer."""
        self.status = self._parser.get_status_code()
        if self.status < _FIRST_FINAL_STATUS:
            return
        self._has_head = True
        if self._head_only:
            self._has_end = True
            return
        framed = {b"content-length", b"transfer-encoding"}
        self._to_end_of_connection = self.status not in _NO_BODY and not any(
            name.lower() in framed for name, _ in self.headers
        )

    def on_body(self, piece: bytes) -> None:
        """Bytes of the body, without the chunks' frames."""
        self._pieces.append(piece)
        self._buffered += len(piece)

    def on_message_complete(self) -> None:
        """The answer is whole, unless it was a 1xx."""
        if self._has_head:
            self._has_end = True
            self._stays_open = self._parser.should_keep_alive()
        else:
            self.status, self.reason, self.headers = 0, "", []


class Upstream:
    """Connections to one socket, without a limit; those that are free are used again."""

    def __init__(self) -> None:
        self._socket: Path | None = None
        self._idle: list[EngineConnection] = []

    async def connection(self, socket: Path) -> EngineConnection:
        """A connection for one request; to be given back or closed.

        Raises:
            OSError: Nobody listens there, or takes the connection in time.
        """
        if socket != self._socket:
            self.close()
            self._socket = socket
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
            connection.close()
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(_CONNECT_SECONDS):
            _, connection = await loop.create_unix_connection(EngineConnection, str(socket))
        return connection

    def give_back(self, connection: EngineConnection, socket: Path) -> None:
        """Keeps a connection whose answer was read to its end; closes any other."""
        if connection.reusable and socket == self._socket:
            connection.idle_since = time.monotonic()
            self._idle.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        """Closes the connections that are free."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()
        self._socket = None
