"""The HTTP front: its listening socket, its routes, and its life."""

from __future__ import annotations

import errno
import socket
from types import TracebackType
from typing import Protocol, Self

from aiohttp import web

from ktd.errors import DoesNotFit
from ktd.http import errors
from ktd.http.metrics import CONTENT_TYPE, Metrics
from ktd.http.passthrough import Passthrough

_BACKLOG = 1024
_CLOSE_SECONDS = 1.0


class Health(Protocol):
    """Whether requests are served."""

    def complaint(self) -> str:
        """Why not, in one sentence; empty if they are."""
        ...


def bind(host: str, port: int) -> socket.socket:
    """A socket that is bound but does not listen yet: taking it early makes its errors come early.

    Raises:
        DoesNotFit: the port is in use, or the address is not this host's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise DoesNotFit(f"--host {host} is no address of this host: {error}.") from error
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            message = f"Port {port} of {host} is in use; choose another one with --port."
        elif error.errno == errno.EACCES:
            message = f"Port {port} needs more privileges; choose one above 1023 with --port."
        else:
            message = f"{host}:{port} cannot be served on: {error.strerror}; see --host and --port."
        raise DoesNotFit(message) from error
    return sock


def address_of(sock: socket.socket) -> str:
    """The URL under which this host reaches the front."""
    host, port = sock.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class HttpFront:
    """Serves on a bound socket while entered."""

    def __init__(
        self, sock: socket.socket, passthrough: Passthrough, health: Health, metrics: Metrics
    ) -> None:
        self._sock = sock
        self._passthrough = passthrough
        self._health = health
        self._metrics = metrics
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        """Starts to answer."""
        app = web.Application()
        app.router.add_route("*", "/v1", self._passthrough.handle)
        app.router.add_route("*", "/v1/{tail:.*}", self._passthrough.handle)
        app.router.add_get("/live", self._live)
        app.router.add_get("/health", self._healthy)
        app.router.add_get("/metrics", self._metrics_text)
        app.router.add_route("*", "/{tail:.*}", self._nothing)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            # A client that goes ends its handler, and that the request to the engine.
            handler_cancellation=True,
            shutdown_timeout=_CLOSE_SECONDS,
            # A compressed request goes on as it came.
            auto_decompress=False,
            max_line_size=1 << 16,
            max_field_size=1 << 16,
        )
        await self._runner.setup()
        await web.SockSite(self._runner, self._sock, backlog=_BACKLOG).start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stops listening and ends what is still being answered."""
        if self._runner is not None:
            await self._runner.cleanup()
        await self._passthrough.close()
        self._sock.close()

    async def _live(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "live"})

    async def _healthy(self, _request: web.Request) -> web.Response:
        complaint = self._health.complaint()
        if complaint:
            body = {"status": "unavailable", "reason": complaint}
            return web.json_response(body, status=503)
        return web.json_response({"status": "ok"})

    async def _metrics_text(self, _request: web.Request) -> web.Response:
        return web.Response(body=self._metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def _nothing(self, request: web.Request) -> web.Response:
        return errors.not_found(request.path)
