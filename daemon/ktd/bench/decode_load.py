"""Streams that decode without end, and what they looked like in a stretch of time."""

from __future__ import annotations

import bisect
import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from ktd.bench.summary import Latency
from ktd.bench.timed_stream import Endpoint, Prompt, timed_completion
from ktd.errors import EngineFailed

_START_SECONDS = 300.0
_STOP_SECONDS = 300.0
_LOOK_SECONDS = 0.02
_SHORTEST = 1e-3  # of a stretch; a stream that only read prompts has no rate


@dataclass(frozen=True, slots=True)
class Stretch:
    """What all streams did between two moments.

    Attributes:
        seconds: Its length.
        tokens: Events that arrived; a server sends one for each token.
        tokens_per_second: Of all streams together, of tokens behind the first of a completion, by
            the time in which they decoded: before the first a prompt is read.
        between_tokens: Times between two events of one stream, of which the later lies inside.
    """

    seconds: float
    tokens: int
    tokens_per_second: float
    between_tokens: Latency


def decoding(arrivals: Sequence[float], gaps: Sequence[float], begin: float, end: float) -> float:
    """Seconds of a stretch in which one stream was not between two completions.

    Args:
        arrivals: When its tokens came.
        gaps: Since the one before it of the same completion; below 0 for the first.
        begin: Of the stretch.
        end: Of it.
    """
    low, high = bisect.bisect_left(arrivals, begin), bisect.bisect_left(arrivals, end)
    between = (
        min(end, arrivals[at]) - max(begin, arrivals[at - 1])
        for at in range(max(1, low), min(high + 1, len(arrivals)))
        if gaps[at] < 0
    )
    return end - begin - sum(between)


class DecodeLoad:
    """A context manager: so many streams, each asking again when a completion has ended.

    Args:
        endpoint: The server.
        prompts: Gives each completion's prompt; called from several threads.
        streams: How many at a time.
        tokens: Tokens of one completion; the more, the fewer times a prompt is read in between.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        prompts: Callable[[], Prompt],
        *,
        streams: int,
        tokens: int,
    ) -> None:
        self._endpoint = endpoint
        self._prompts = prompts
        self._tokens = tokens
        self._stop = threading.Event()
        self._going = threading.Event()
        self._going.set()
        self._pausing = [threading.Event() for _ in range(streams)]
        self._lock = threading.Lock()
        self._complaint = ""
        # Of each stream: moments of arrival, and since when the one before it had come.
        self._arrivals: list[list[float]] = [[] for _ in range(streams)]
        self._gaps: list[list[float]] = [[] for _ in range(streams)]
        self._threads = [
            threading.Thread(target=self._run, args=(stream,), daemon=True)
            for stream in range(streams)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        deadline = time.monotonic() + _START_SECONDS
        while not all(self._arrivals):
            self.check()
            if time.monotonic() > deadline:
                self._stop.set()
                raise EngineFailed(f"no token came on some stream in {_START_SECONDS:.0f} s")
            time.sleep(0.01)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._going.set()
        for thread in self._threads:
            thread.join(_STOP_SECONDS)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """While the body runs, no stream asks for anything; those under way are broken off.

        Raises:
            EngineFailed: A stream has died, or does not end.
        """
        for pausing in self._pausing:
            pausing.clear()
        self._going.clear()
        try:
            deadline = time.monotonic() + _STOP_SECONDS
            for pausing in self._pausing:
                while not pausing.wait(_LOOK_SECONDS):
                    self.check()
                    if time.monotonic() > deadline:
                        raise EngineFailed(f"a stream has not ended in {_STOP_SECONDS:.0f} s")
            yield
        finally:
            self._going.set()
        self.check()

    def check(self) -> None:
        """Raises what a stream died of.

        Raises:
            EngineFailed: The server refused or broke off.
        """
        if self._complaint:
            raise EngineFailed(self._complaint)

    @property
    def tokens(self) -> int:
        """Events that have arrived on all streams since the beginning."""
        return sum(map(len, self._arrivals))

    def stretch(self, begin: float, end: float) -> Stretch:
        """What happened from ``begin`` to ``end``, both by ``time.perf_counter``.

        Raises:
            EngineFailed: A stream has died.
        """
        self.check()
        tokens, rate, gaps = 0, 0.0, []
        seconds = end - begin
        for arrivals, before in zip(self._arrivals, self._gaps, strict=True):
            # A thread appends to both; the gap comes first.
            low, high = bisect.bisect_left(arrivals, begin), bisect.bisect_left(arrivals, end)
            tokens += high - low
            own = [gap for gap in before[low:high] if gap >= 0]
            rate += len(own) / max(decoding(arrivals, before, begin, end), _SHORTEST)
            gaps += own
        return Stretch(seconds, tokens, rate, Latency.of(gaps))

    def measure(self, seconds: float) -> Stretch:
        """Waits and tells what happened meanwhile."""
        begin = time.perf_counter()
        while (left := begin + seconds - time.perf_counter()) > 0:
            self.check()
            time.sleep(min(left, 0.5))
        return self.stretch(begin, begin + seconds)

    def measure_tokens(self, tokens: int, *, longest: float) -> Stretch:
        """Waits for so many tokens, or for ``longest`` seconds, and tells what happened."""
        begin, before = time.perf_counter(), self.tokens
        while self.tokens - before < tokens and time.perf_counter() - begin < longest:
            self.check()
            time.sleep(_LOOK_SECONDS)
        return self.stretch(begin, time.perf_counter())

    def _run(self, stream: int) -> None:
        try:
            while not self._stop.is_set():
                with contextlib.suppress(_StoppedError):
                    self._complete(stream)
                if not self._going.is_set():
                    self._pausing[stream].set()
                    self._going.wait()
        except (EngineFailed, OSError, ValueError) as error:
            with self._lock:
                self._complaint = self._complaint or f"a stream broke off: {error}"

    def _complete(self, stream: int) -> None:
        last: float | None = None

        def arrived(now: float) -> None:
            nonlocal last
            if self._stop.is_set() or not self._going.is_set():
                raise _StoppedError
            self._gaps[stream].append(-1.0 if last is None else now - last)
            self._arrivals[stream].append(now)
            last = now

        timed_completion(self._endpoint, self._prompts(), self._tokens, arrived=arrived)


class _StoppedError(Exception):
    """Breaks a stream off, which cancels it on the server."""
