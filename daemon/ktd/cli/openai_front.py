"""The OpenAI HTTP front as `ktd chat` and `ktd demo` use it: one streamed request at a time."""

from __future__ import annotations

import http.client
import json
from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from ktd.errors import EngineNotReady, InvalidArgument, KtdError

_DATA = b"data:"


class FrontUnreachable(KtdError):
    """Nothing answers at the HTTP front's address, or the answer broke off."""

    code = "UNAVAILABLE"
    reason = "HTTP_FRONT_UNREACHABLE"


class FrontRefused(KtdError):
    """The HTTP front, or SGLang behind it, answered with an error."""

    code = "FAILED_PRECONDITION"
    reason = "HTTP_ERROR"


@dataclass(frozen=True, slots=True)
class Front:
    """The OpenAI API at one address.

    Attributes:
        address: For example ``http://127.0.0.1:30000``; a path is kept.
        api_key: Sent as a bearer token if it is not empty.
        timeout: Seconds without a byte after which the front counts as gone.
    """

    address: str
    api_key: str = field(default="", repr=False)
    timeout: float = 300.0

    def stream(self, path: str, body: Mapping[str, Any]) -> Generator[dict[str, Any], None, None]:
        """Posts ``body`` to ``path`` (for example ``/v1/completions``) and yields each event.

        Closing the iterator closes the connection, which cancels the request.

        Raises:
            FrontUnreachable: nothing listens there, or the answer broke off.
            FrontRefused: an error was answered; the message is the server's.
            EngineNotReady: the engine does not serve now.
            InvalidArgument: the address is no http address.
        """
        payload = json.dumps({**body, "stream": True}).encode()
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        with closing(self._connection()) as connection:
            try:
                connection.request("POST", self._base_path() + path, payload, headers)
                response = connection.getresponse()
                if response.status != http.client.OK:
                    raise self._refused(response.status, response.read())
                yield from _events(response)
            except (OSError, http.client.HTTPException) as error:
                what = str(error) or type(error).__name__
                raise FrontUnreachable(
                    f"the HTTP front at {self.address} did not answer ({what}); see 'ktd status'"
                ) from error

    def _connection(self) -> http.client.HTTPConnection:
        try:
            parts = urlsplit(self.address)
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if not host or parts.scheme not in ("http", "https"):
            raise InvalidArgument(f"'{self.address}' is not an address like http://127.0.0.1:30000")
        kind = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        return kind(host, port, timeout=self.timeout)

    def _base_path(self) -> str:
        return urlsplit(self.address).path.rstrip("/")

    def _refused(self, status: int, body: bytes) -> KtdError:
        message = _error_message(body) or f"HTTP {status} without an explanation"
        if status == http.client.SERVICE_UNAVAILABLE:
            return EngineNotReady(message)
        if status == http.client.UNAUTHORIZED:
            message += "; give the key with --api-key or KTD_API_KEY"
        return FrontRefused(message)


def _events(response: http.client.HTTPResponse) -> Generator[dict[str, Any], None, None]:
    """The JSON of each server-sent event up to ``[DONE]``."""
    for line in response:
        if not line.startswith(_DATA):
            continue
        data = line[len(_DATA) :].strip()
        if data == b"[DONE]":
            return
        try:
            event = json.loads(data)
        except ValueError as error:
            raise FrontUnreachable(
                f"the HTTP front sent an event that is no JSON: {error}"
            ) from error
        if "error" in event:
            raise FrontRefused(_error_message(data) or "the engine reported an error")
        yield event
    raise FrontUnreachable("the answer broke off before its end; see 'ktd status'")


def _error_message(body: bytes) -> str:
    """The sentence in an OpenAI-shaped error, or the body's first line."""
    try:
        value = json.loads(body)
    except ValueError:
        return body.decode(errors="replace").strip().partition("\n")[0][:300]
    error = value.get("error", value) if isinstance(value, dict) else value
    if isinstance(error, dict):
        error = error.get("message", "")
    return str(error)
