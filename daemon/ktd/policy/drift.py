"""When did the workload change, and how long will it stay as it is?"""

from __future__ import annotations

from collections import deque

from ktd.policy.base import DECISION_TOKENS

# One chunk, however long, is no more evidence than so many of the usual length: it has one subject.
_LONGEST_CHUNK = 4.0


class DriftDetector:
    """A cumulative sum of how much better a short memory forecasts than a long one (Page's test).

    The excess is in nats per pair, which is the same for a model of any size, and not a test of
    significance: neighbouring tokens speak of one subject, so that everything is significant.
    """

    def __init__(self, excess: float, evidence: float) -> None:
        self._excess = excess
        self._evidence = evidence
        self._sum = 0.0

    def update(self, excess: float, tokens: float) -> bool:
        """Whether the chunk of ``tokens`` tokens completes the evidence for a change."""
        weight = min(tokens / DECISION_TOKENS, _LONGEST_CHUNK)
        self._sum = max(0.0, self._sum + (excess - self._excess) * weight)
        if self._sum <= self._evidence:
            return False
        self._sum = 0.0
        return True

    def quiet(self, excess: float) -> bool:
        """Whether a chunk with that excess looks like the ones before."""
        return excess < self._excess


class ShiftClock:
    """Times of the last changes, and from them how long the present state is expected to last.

    The mean of the last few times between changes, the open one included, with a prior that counts
    as one more; memory is counted in changes and not in tokens, so that a workload that begins to
    turn often is noticed after a few turns, however quiet it was before.
    """

    def __init__(self, prior: float, remembered: int) -> None:
        self._prior = prior
        self._shifts: deque[float] = deque(maxlen=remembered + 1)
        self.count = 0

    def shifted(self, now: float) -> None:
        """The workload changed at token ``now``."""
        self._shifts.append(now)
        self.count += 1

    def since(self, now: float) -> float:
        """Tokens since the last change, or since the beginning."""
        return now - self._shifts[-1] if self._shifts else now

    def dwell(self, now: float) -> float:
        """Tokens that the present state is expected to last."""
        full = len(self._shifts) == self._shifts.maxlen
        known = len(self._shifts) - 1 if full else len(self._shifts)
        begin = self._shifts[0] if full else 0.0
        return (self._prior + now - begin) / (1 + known)
