"""``ktd bench prefill``: how fast a server reads a long prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from ktd.bench.prompts import Prompts
from ktd.bench.servers import RunningServer
from ktd.bench.summary import Summary
from ktd.bench.timed_stream import timed_completion


@dataclass(frozen=True, slots=True)
class PrefillResult:
    """Tokens per second of each server: prompt tokens over the time to the first token."""

    prompt_tokens: int
    tokens_per_second: dict[str, Summary]
    first_token_ms: dict[str, Summary]

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def measure_prefill(
    server: RunningServer,
    prompts: Prompts,
    *,
    tokens: int,
    runs: int,
    progress: Callable[[str], None],
) -> PrefillResult:
    """Sends ``runs`` prompts, after one that is not counted; each is another one."""
    progress(f"warming up {server.name}")
    timed_completion(server.endpoint, prompts.tokens(tokens), 1)
    rates, times = [], []
    for run in range(runs):
        first = timed_completion(server.endpoint, prompts.tokens(tokens), 1).first
        rates.append(tokens / first)
        times.append(1e3 * first)
        progress(f"run {run + 1}/{runs}: {server.name} {rates[-1]:.0f} tokens/s")
    return PrefillResult(tokens, {server.name: Summary.of(rates)}, {server.name: Summary.of(times)})
