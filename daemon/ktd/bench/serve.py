"""``ktd bench serve``: requests that come by a Poisson process, with lengths like ShareGPT's."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ktd.bench.lengths import RequestLength
from ktd.bench.prompts import Prompts
from ktd.bench.summary import Latency
from ktd.bench.timed_stream import Endpoint, Prompt, TimedStream, timed_completion
from ktd.errors import EngineFailed


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a request must keep to be a good one, in seconds."""

    first_token: float
    per_token: float

    def met(self, stream: TimedStream) -> bool:
        """Whether the stream kept both."""
        return stream.first <= self.first_token and stream.seconds_per_token <= self.per_token


@dataclass(frozen=True, slots=True)
class ServeResult:
    """One server under one load.

    Attributes:
        server: Its name.
        rate: Requests a second that were sent, on average.
        requests: That ended well.
        failed: That did not.
        seconds: From the first request to the last token.
        prompt_tokens, output_tokens: Of all requests that ended well.
        output_tokens_per_second: Of all of them together.
        first_token: Time to the first token.
        between_tokens: Between two events of a stream.
        goodput: Requests a second within the bounds.
        within_bounds: Share of all requests sent.
        complaint: What the first request that failed was told.
    """

    server: str
    rate: float
    requests: int
    failed: int
    seconds: float
    prompt_tokens: int
    output_tokens: int
    output_tokens_per_second: float
    first_token: Latency
    between_tokens: Latency
    goodput: float
    within_bounds: float
    complaint: str = ""

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def measure_serve(
    name: str,
    endpoint: Endpoint,
    lengths: Sequence[RequestLength],
    *,
    prompts: Prompts,
    rate: float,
    seed: int,
    bounds: Bounds,
    progress: Callable[[str], None],
) -> ServeResult:
    """Sends one request for each of ``lengths``; the times between them are exponential.

    Raises:
        EngineFailed: No request ended well.
    """
    timed_completion(endpoint, prompts.tokens(lengths[0].prompt), 8)  # warms up
    asked = [(prompts.tokens(length.prompt), length) for length in lengths]
    load = _Load(endpoint, progress, len(asked))
    source = random.Random(seed)  # noqa: S311 - no secret
    began = due = time.perf_counter()
    threads = []
    for prompt, length in asked:
        time.sleep(max(0.0, due - time.perf_counter()))
        due += source.expovariate(rate)
        thread = threading.Thread(target=load.request, args=(prompt, length.output), daemon=True)
        thread.start()
        threads.append(thread)
    for thread in threads:
        thread.join()
    if not load.streams:
        raise EngineFailed(f"{name} answered no request: {load.complaint}")
    ended = max(stream.began + stream.arrivals[-1] for stream in load.streams)
    seconds = ended - began
    good = sum(bounds.met(stream) for stream in load.streams)
    output = sum(stream.tokens for stream in load.streams)
    return ServeResult(
        server=name,
        rate=rate,
        requests=len(load.streams),
        failed=len(asked) - len(load.streams),
        seconds=seconds,
        prompt_tokens=load.prompt_tokens,
        output_tokens=output,
        output_tokens_per_second=output / seconds,
        first_token=Latency.of([stream.first for stream in load.streams]),
        between_tokens=Latency.of([gap for stream in load.streams for gap in stream.gaps]),
        goodput=good / seconds,
        within_bounds=good / len(asked),
        complaint=load.complaint,
    )


class _Load:
    """What came of the requests; each runs in a thread of its own."""

    def __init__(self, endpoint: Endpoint, progress: Callable[[str], None], total: int) -> None:
        self._endpoint = endpoint
        self._progress = progress
        self._total = total
        self._lock = threading.Lock()
        self._ended = 0
        self.streams: list[TimedStream] = []
        self.prompt_tokens = 0
        self.complaint = ""

    def request(self, prompt: Prompt, max_tokens: int) -> None:
        """Sends one and keeps its times."""
        complaint, stream = "", None
        try:
            stream = timed_completion(self._endpoint, prompt, max_tokens)
        except (EngineFailed, OSError, ValueError) as error:
            complaint = f"{error}" or type(error).__name__
        with self._lock:
            self._ended += 1
            if stream is not None:
                self.streams.append(stream)
                self.prompt_tokens += len(prompt)
            self.complaint = self.complaint or complaint
            if self._ended % max(1, self._total // 10) == 0:
                self._progress(f"{self._ended}/{self._total} requests have ended")
