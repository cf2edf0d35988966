"""One streamed completion, with the time at which each token arrived."""

from __future__ import annotations

import http.client
import json
import socket
import time
from dataclasses import dataclass
from typing import Any, Protocol

from ktd.errors import EngineFailed

_OK = 200


class Endpoint(Protocol):
    """Where an OpenAI server listens."""

    def connect(self) -> http.client.HTTPConnection:
        """A new connection."""


@dataclass(frozen=True, slots=True)
class TcpEndpoint:
    """A server on a TCP port of this host."""

    port: int

    def connect(self) -> http.client.HTTPConnection:
        """A new connection."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)


@dataclass(frozen=True, slots=True)
class UnixEndpoint:
    """A server on a Unix socket."""

    path: str

    def connect(self) -> http.client.HTTPConnection:
        """A new connection."""
        return _UnixConnection(self.path)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=600)
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
        arrivals: When each event with text arrived.
        tokens: Tokens that the server says it generated.
    """

    text: str
    arrivals: tuple[float, ...]
    tokens: int

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


def timed_completion(endpoint: Endpoint, prompt: str, max_tokens: int) -> TimedStream:
    """Greedy completion of exactly ``max_tokens`` tokens, streamed over a new connection.

    Raises:
        EngineFailed: the server answered with an error.
    """
    body: dict[str, Any] = {
        "model": "default",
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    connection = endpoint.connect()
    connection.connect()
    payload = json.dumps(body).encode()
    began = time.perf_counter()
    connection.request("POST", "/v1/completions", payload, {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != _OK:
        raise EngineFailed(f"the server answered {response.status}: {response.read().decode()}")
    arrivals, pieces, tokens = [], [], 0
    while line := response.readline():
        if not line.startswith(b"data: {"):
            continue
        now = time.perf_counter() - began
        event = json.loads(line[6:])
        if event.get("usage"):
            tokens = event["usage"]["completion_tokens"]
        if event["choices"] and event["choices"][0]["text"]:
            arrivals.append(now)
            pieces.append(event["choices"][0]["text"])
    connection.close()
    return TimedStream("".join(pieces), tuple(arrivals), tokens)
