"""Answers that the front gives itself, in the shape of the OpenAI API's errors."""

from __future__ import annotations

from aiohttp import web


def openai_error(
    status: int, message: str, *, kind: str, code: str | None = None, retry_after: int | None = None
) -> web.Response:
    """``{"error": {"message", "type", "param", "code"}}`` with an optional ``Retry-After``.

    Shape: https://platform.openai.com/docs/guides/error-codes.
    """
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    body = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    return web.json_response(body, status=status, headers=headers)


def unauthorized() -> web.Response:
    """401: the key is missing or wrong."""
    response = openai_error(
        401,
        "The API key is missing or wrong; send it as 'Authorization: Bearer KEY'.",
        kind="invalid_request_error",
        code="invalid_api_key",
    )
    response.headers["WWW-Authenticate"] = "Bearer"
    return response


def unavailable(reason: str, retry_after: int) -> web.Response:
    """503: no request is taken now."""
    return openai_error(
        503, reason, kind="service_unavailable", code="engine_not_ready", retry_after=retry_after
    )


def bad_gateway(reason: str) -> web.Response:
    """502: the engine went away before it answered."""
    return openai_error(502, reason, kind="server_error", code="engine_gone")


def not_found(path: str) -> web.Response:
    """404: not a route of the front."""
    return openai_error(
        404,
        f"There is no {path}; this server has /v1, /live, /health and /metrics.",
        kind="invalid_request_error",
        code="not_found",
    )
