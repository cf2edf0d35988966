"""``ktd bench decode``: tokens per second of one stream, next to another server on the same host.

Both servers run at once and take turns, so that whatever else the host does meets both; the figure
is the ratio of each pair of neighbouring runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from ktd.bench.servers import RunningServer
from ktd.bench.summary import Summary
from ktd.bench.timed_stream import timed_completion


@dataclass(frozen=True, slots=True)
class DecodeResult:
    """Tokens per second of each server, and the ratio of the first to the last."""

    tokens_per_second: dict[str, Summary]
    ratio: Summary | None

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def measure_decode(
    servers: list[RunningServer],
    *,
    prompt: str,
    tokens: int,
    runs: int,
    progress: Callable[[str], None],
) -> DecodeResult:
    """Streams ``runs`` completions from each server in turn, after one that is not counted."""
    rates: dict[str, list[float]] = {server.name: [] for server in servers}
    for server in servers:
        progress(f"warming up {server.name}")
        timed_completion(server.endpoint, prompt, tokens)
    for run in range(runs):
        for server in servers:
            rate = timed_completion(server.endpoint, prompt, tokens).decode_tokens_per_second
            rates[server.name].append(rate)
            progress(f"run {run + 1}/{runs}: {server.name} {rate:.1f} tokens/s")
    ratio = None
    if len(servers) > 1:
        mine, other = rates[servers[0].name], rates[servers[-1].name]
        ratio = Summary.of([a / b for a, b in zip(mine, other, strict=True)])
    return DecodeResult({name: Summary.of(values) for name, values in rates.items()}, ratio)
