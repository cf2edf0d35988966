"""When did the workload change, and how long will it stay as it is?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ktd.policy.base import DECISION_TOKENS

if TYPE_CHECKING:
    from numpy.typing import NDArray

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
    """Counts changes, and tells from the times between them how long the present state will last.

    Those times are taken as exponential, and their mean from the last few of them, the open one
    included, with a prior that counts as one more; memory is counted in changes and not in tokens,
    so that a workload that begins to turn often is noticed after a few turns, however quiet it was.
    The pace of changes changes too: after as many as are remembered, on average, one is taken to
    begin a new pace, of which the times before say nothing. How many of them still count is weighed
    by how well each answer foretold what came, and that the present state lasts as long as it does:
    one that has outlasted all before it is soon expected to last as long again.
    """

    def __init__(self, prior: float, remembered: int) -> None:
        self._prior = prior
        self._remembered = remembered
        self._last = 0.0
        # For each number of last times that may count, from none on: its weight at the last change,
        # and the sum of those times and the prior.
        self._weights = np.ones(1)
        self._spans = np.array([prior])
        self.count = 0

    def shifted(self, now: float) -> None:
        """The workload changed at token ``now``."""
        lasted = self.since(now)
        ended = self._lasting(lasted) / self._dwells(lasted)
        new = 1 / (1 + self._remembered)
        weights = np.append(new, (1 - new) * ended / ended.sum())
        most = self._remembered + 1
        # What more times than are remembered would weigh goes to all that are.
        weights[most - 1 : most] += weights[most:].sum()
        self._weights = weights[:most]
        self._spans = np.append(self._prior, self._spans + lasted)[:most]
        self._last = now
        self.count += 1

    def since(self, now: float) -> float:
        """Tokens since the last change, or since the beginning."""
        return now - self._last

    def dwell(self, now: float) -> float:
        """Tokens that the present state is expected to last."""
        lasted = self.since(now)
        weights = self._lasting(lasted)
        return float(weights @ self._dwells(lasted) / weights.sum())

    def _lasting(self, lasted: float) -> NDArray[np.float64]:
        """Weights of the numbers of times, after a state has lasted so long."""
        known = np.arange(1, len(self._spans) + 1)
        survived = (self._spans / (self._spans + lasted)) ** known
        likely: NDArray[np.float64] = self._weights * survived
        return likely

    def _dwells(self, lasted: float) -> NDArray[np.float64]:
        """What each number of times expects of a state that has lasted so long."""
        expected: NDArray[np.float64] = (self._spans + lasted) / np.arange(1, len(self._spans) + 1)
        return expected
