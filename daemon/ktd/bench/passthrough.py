"""``ktd bench passthrough``: what the HTTP front adds to SGLang's own application.

The same engine is asked through the front and through SGLang's Unix socket, in turn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from ktd.bench.summary import Summary
from ktd.bench.timed_stream import Endpoint, timed_completion


@dataclass(frozen=True, slots=True)
class PassthroughResult:
    """Milliseconds: front minus direct, pair by pair."""

    first_token_ms: Summary
    per_token_ms: Summary
    direct_first_token_ms: Summary
    direct_per_token_ms: Summary

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def measure_passthrough(
    front: Endpoint,
    direct: Endpoint,
    *,
    prompt: str,
    tokens: int,
    runs: int,
    progress: Callable[[str], None],
) -> PassthroughResult:
    """Compares ``runs`` pairs; which of a pair goes first alternates."""
    timed_completion(front, prompt, tokens)
    timed_completion(direct, prompt, tokens)
    first: list[float] = []
    each: list[float] = []
    direct_first: list[float] = []
    direct_each: list[float] = []
    for run in range(runs):
        order = (front, direct) if run % 2 == 0 else (direct, front)
        pair = {id(end): timed_completion(end, prompt, tokens) for end in order}
        through, alone = pair[id(front)], pair[id(direct)]
        first.append(1e3 * (through.first - alone.first))
        each.append(1e3 * (through.seconds_per_token - alone.seconds_per_token))
        direct_first.append(1e3 * alone.first)
        direct_each.append(1e3 * alone.seconds_per_token)
        progress(f"pair {run + 1}/{runs}: first token {first[-1]:+.2f} ms, each {each[-1]:+.3f} ms")
    return PassthroughResult(
        Summary.of(first), Summary.of(each), Summary.of(direct_first), Summary.of(direct_each)
    )
