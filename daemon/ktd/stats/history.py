"""Samples of the last minutes, so that a question about a window can be answered at any time."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ktd.stats.model import Sample

# Counters are looked at this often, in seconds.
TICK = 1.0
SPACING = 10.0
LONGEST_WINDOW = 300.0


class SampleHistory:
    """One sample each ten seconds of counting, for five minutes.

    While nothing is counted nothing is kept, as the last sample still stands. A model of 60 layers
    and 384 experts takes 0.7 MB a sample.
    """

    def __init__(self, spacing: float = SPACING, longest: float = LONGEST_WINDOW) -> None:
        self._spacing = spacing
        self._longest = longest
        self._samples: deque[Sample] = deque()

    def add(self, sample: Sample, *, last: bool = False) -> None:
        """Keeps a sample if it is time for one; those of an engine that has ended are forgotten.

        Args:
            sample: The latest one.
            last: Nothing has been counted after it, so it is kept in any case.
        """
        samples = self._samples
        if samples and samples[-1].engine_id != sample.engine_id:
            samples.clear()
        # The clock may have been set back: what lies in the future is of no use.
        while samples and samples[-1].time > sample.time:
            samples.pop()
        if not samples or last or sample.time - samples[-1].time >= self._spacing:
            samples.append(sample)
        # The newest of those that are too old begins the longest window.
        while len(samples) > 1 and samples[1].time <= sample.time - self._longest:
            samples.popleft()

    def before(self, sample: Sample, seconds: float) -> Sample | None:
        """The sample that begins a window which ends with ``sample``.

        The latest one that is ``seconds`` old or older, so that a window is never shorter than
        asked for; where nothing was counted after it, with the time until which it stood. None: the
        window reaches back to the engine's start.
        """
        begin = sample.time - seconds
        following = sample
        for kept in reversed(self._samples):
            if kept.engine_id == sample.engine_id and kept.time <= begin:
                # One that is later than its turn came as soon as something was counted again.
                idle = following.time - kept.time > self._spacing + 2 * TICK
                stood = min(begin, following.time - TICK) if idle else kept.time
                return replace(kept, time=stood)
            following = kept
        return None
