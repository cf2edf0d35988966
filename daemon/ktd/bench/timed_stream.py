"""One streamed completion, with the time at which each token arrived."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from ktd.errors import EngineFailed

_OK = 200
_TIMEOUT = 600

# Text, or token ids.
Prompt: TypeAlias = str | Sequence[int]


class Endpoint(Protocol):
    """Where an OpenAI server listens."""

    @property
    def model(self) -> str:
        """What requests call its model."""

    @property
    def prefix(self) -> str:
        """What stands before ``/v1``."""

    def connect(self) -> http.client.HTTPConnection:
        """A new connection."""


@dataclass(frozen=True, slots=True)
class TcpEndpoint:
    """A server on a TCP port, of this host by default."""

    port: int
    host: str = "127.0.0.1"
    prefix: str = ""
    model: str = "default"

    def connect(self) -> http.client.HTTPConnection:
        """A new connection."""
        return http.client.HTTPConnection(self.host, self.port, timeout=_TIMEOUT)


@dataclass(frozen=True, slots=True)
class UnixEndpoint:
    """A server on a Unix socket."""

    path: str
    prefix: str = ""
    model: str = "default"

    def connect(self) -> http.client.HTTPConnection:
        """A new connection."""
        return _UnixConnection(self.path)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


@dataclass(frozen=True, slots=True)
class TimedStream:
    """Times of one stream, in seconds since the request was sent.

    Attributes:
        text: The completion.
        arrivals: When the first event, and each later one with text, arrived.
        tokens: Tokens that the server says it generated.
        began: When the request was sent, by ``time.perf_counter``.
    """

    text: str
    arrivals: tuple[float, ...]
    tokens: int
    began: float = 0.0

    @property
    def first(self) -> float:
        """Time to the first token."""
        return self.arrivals[0]

    @property
    def decode_tokens_per_second(self) -> float:
        """Tokens after the first, over the time after the first."""
        return (self.tokens - 1) / (self.arrivals[-1] - self.arrivals[0])

    @property
    def seconds_per_token(self) -> float:
        """Mean time between tokens."""
        return (self.arrivals[-1] - self.arrivals[0]) / max(1, self.tokens - 1)

    @property
    def gaps(self) -> tuple[float, ...]:
        """Times between neighbouring events."""
        return tuple(b - a for a, b in zip(self.arrivals, self.arrivals[1:], strict=False))


def timed_completion(
    endpoint: Endpoint,
    prompt: Prompt,
    max_tokens: int,
    *,
    arrived: Callable[[float], None] | None = None,
) -> TimedStream:
    """Greedy completion of exactly ``max_tokens`` tokens, streamed over a new connection.

    Args:
        endpoint: The server.
        prompt: Text or token ids.
        max_tokens: Tokens to generate.
        arrived: Told ``time.perf_counter()`` of each arrival while the stream runs.

    Raises:
        EngineFailed: the server answered with an error, or with nothing.
    """
    connection = endpoint.connect()
    connection.connect()
    payload = _request(endpoint, prompt, max_tokens)
    began = time.perf_counter()
    arrivals: list[float] = []
    pieces: list[str] = []
    tokens = 0
    try:
        for event in _events(connection, f"{endpoint.prefix}/v1/completions", payload):
            now = time.perf_counter()
            if event.get("usage"):
                tokens = event["usage"]["completion_tokens"]
            text = event["choices"][0].get("text") if event.get("choices") else None
            # A first token may be half a letter, of which there is nothing to show yet.
            if text or (text is not None and not arrivals):
                arrivals.append(now - began)
                pieces.append(text)
                if arrived is not None:
                    arrived(now)
    finally:
        connection.close()
    if not arrivals:
        raise EngineFailed("the server ended a stream without a token")
    return TimedStream("".join(pieces), tuple(arrivals), tokens or len(arrivals), began)


def _request(endpoint: Endpoint, prompt: Prompt, max_tokens: int) -> bytes:
    body: dict[str, Any] = {
        "model": endpoint.model,
        "prompt": prompt if isinstance(prompt, str) else list(prompt),
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return json.dumps(body).encode()


def _events(
    connection: http.client.HTTPConnection, path: str, payload: bytes
) -> Iterator[dict[str, Any]]:
    connection.request("POST", path, payload, {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != _OK:
        raise EngineFailed(f"the server answered {response.status}: {response.read().decode()}")
    while line := response.readline():
        if line.startswith(b"data: {"):
            event = json.loads(line[6:])
            if "error" in event:
                raise EngineFailed(f"the server ended a stream: {event['error']}")
            yield event
