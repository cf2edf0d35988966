"""Requests of the acceptance tests to an OpenAI server."""

from __future__ import annotations

import json
import urllib.request
from dataclasses import dataclass, field
from typing import Any

import aiohttp


def post(url: str, body: dict[str, Any]) -> Any:
    """Posts JSON to ``/v1/completions`` and returns the answer's JSON."""
    request = urllib.request.Request(
        f"{url}/v1/completions",
        json.dumps({"model": "default", **body}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.load(answer)


def prompt_logprobs(url: str, ids: list[int]) -> list[float]:
    """Log-probability of each token of a prompt but the first, as the server sees it."""
    body = {"prompt": ids, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}
    logprobs = post(url, body)["choices"][0]["logprobs"]["token_logprobs"]
    values = logprobs[1 : len(ids)]
    assert len(values) == len(ids) - 1
    return [float(value) for value in values]


def decoded(url: str, prompt: list[int], tokens: int) -> tuple[list[int], list[float]]:
    """A greedy continuation: its token ids, and the log-probability of each."""
    body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "logprobs": 1}
    choice = post(url, body | {"ignore_eos": True, "return_token_ids": True})["choices"][0]
    ids, values = choice["token_ids"], choice["logprobs"]["token_logprobs"]
    assert len(ids) == len(values) == tokens
    return list(ids), [float(value) for value in values]


def mean_error(values: list[float], reference: list[float]) -> float:
    """Mean absolute difference."""
    return sum(abs(a - b) for a, b in zip(values, reference, strict=True)) / len(values)


def largest_error(values: list[float], reference: list[float]) -> float:
    """Largest absolute difference."""
    return max(abs(a - b) for a, b in zip(values, reference, strict=True))


@dataclass
class Streamed:
    """A finished stream."""

    text: str = ""
    ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    completion_tokens: int = 0


async def stream(
    session: aiohttp.ClientSession,
    url: str,
    prompt: str | list[int],
    max_tokens: int,
    *,
    into: Streamed | None = None,
) -> Streamed:
    """Streams one greedy completion with its token ids.

    Args:
        session: Of the caller.
        url: The server's.
        prompt: Text, or its ids.
        max_tokens: As many are decoded.
        into: What has come, also where the stream is cut; None: made here.
    """
    body = {
        "model": "default",
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "return_token_ids": True,
        "stream_options": {"include_usage": True},
    }
    result = Streamed() if into is None else into
    async with session.post(f"{url}/v1/completions", json=body) as answer:
        assert answer.status == 200, await answer.text()
        async for line in answer.content:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if event.get("usage"):
                result.completion_tokens = event["usage"]["completion_tokens"]
            for choice in event["choices"]:
                result.text += choice["text"]
                result.ids += choice.get("token_ids") or []
                result.finish_reason = choice.get("finish_reason") or result.finish_reason
    return result
