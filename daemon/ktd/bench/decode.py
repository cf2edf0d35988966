"""``ktd bench decode``: tokens per second of one stream or several, next to another server.

Both servers run at once and take turns, so that whatever else the host does meets both; the figure
is the ratio of each pair of neighbouring runs. Where they do not fit beside each other, one is
measured after the other, and runs are paired by their number.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from ktd.bench.servers import RunningServer
from ktd.bench.summary import Summary
from ktd.bench.timed_stream import Endpoint, TimedStream, timed_completion


@dataclass(frozen=True, slots=True)
class DecodeResult:
    """Tokens per second of each server, and the ratio of the first to the last."""

    tokens_per_second: dict[str, Summary]
    ratio: Summary | None
    batch: int = 1

    @classmethod
    def of(cls, rates: Mapping[str, Sequence[float]], batch: int) -> DecodeResult:
        """From the rates of each server, run by run."""
        names = list(rates)
        ratio = None
        if len(names) > 1:
            pairs = zip(rates[names[0]], rates[names[-1]], strict=True)
            ratio = Summary.of([mine / other for mine, other in pairs])
        return cls({name: Summary.of(values) for name, values in rates.items()}, ratio, batch)

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
    batch: int = 1,
) -> dict[str, list[float]]:
    """Rates by server: ``runs`` times ``batch`` completions, in turn, after one not counted.

    Streams together begin with different prompts, or they would choose the same experts.
    """
    rates: dict[str, list[float]] = {server.name: [] for server in servers}
    for server in servers:
        progress(f"warming up {server.name}")
        _batch_rate(server.endpoint, prompt, tokens, batch)
    for run in range(runs):
        for server in servers:
            rate = _batch_rate(server.endpoint, prompt, tokens, batch)
            rates[server.name].append(rate)
            at = "" if batch == 1 else f", {batch} streams"
            progress(f"run {run + 1}/{runs}: {server.name} {rate:.1f} tokens/s{at}")
    return rates


def variant(prompt: str, number: int) -> str:
    """Another prompt of about the same length for each number: the words begin elsewhere."""
    words = prompt.split()
    first = number % max(1, len(words))
    return " ".join([f"{number + 1}.", *words[first:], *words[:first]])


def _batch_rate(endpoint: Endpoint, prompt: str, tokens: int, batch: int) -> float:
    if batch == 1:
        return timed_completion(endpoint, prompt, tokens).decode_tokens_per_second
    with ThreadPoolExecutor(batch) as threads:
        jobs = [
            threads.submit(timed_completion, endpoint, variant(prompt, number), tokens)
            for number in range(batch)
        ]
        return common_rate([job.result() for job in jobs])


def common_rate(streams: Sequence[TimedStream]) -> float:
    """Tokens per second of all streams together while all of them decode."""
    begin = max(stream.began + stream.first for stream in streams)
    end = min(stream.began + stream.arrivals[-1] for stream in streams)
    count = 0.0
    for stream in streams:
        after = bisect.bisect_right(stream.arrivals, begin - stream.began)
        until = bisect.bisect_right(stream.arrivals, end - stream.began)
        # Several tokens may come in one event.
        count += (until - after) * stream.tokens / len(stream.arrivals)
    return count / (end - begin)
