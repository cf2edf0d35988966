"""Did moving experts make steps slower? Then it is taken back, whatever was predicted."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import fmean, variance
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ktd.placement.model import Experts
    from ktd.policy.step_times import StepTime

_LEAST_BEFORE = 4
_MOST_BEFORE = 16
_AFTER = 6
# Standard errors of the difference of two means, of which one is of six: about one false alarm in
# a thousand trials.
_SIGMAS = 4.0
# Less than this is not worth a roll-back, however sure it is.
_LEAST_LOSS = 0.02


@dataclass(frozen=True, slots=True)
class Setback:
    """Steps have become slower: ``before`` and ``after`` in seconds, and what was in slots before.

    Attributes:
        noise: Seconds by which the two could differ by chance.
    """

    before: float
    after: float
    noise: float
    experts: Experts


@dataclass(slots=True)
class _Trial:
    experts: Experts
    before: list[float]
    batch: int
    after: list[float] = field(default_factory=list)


class Watchdog:
    """Compares step times before moves with those after them; thresholds follow from their spread.

    A trial begins with a move and is judged six means after the last one. Only means of nearly the
    same batch size are compared, and only as long as the workload stays the same: a change of it
    makes steps slower too, and moves are the answer to it and not the cause.
    """

    def __init__(self) -> None:
        self._before: deque[StepTime] = deque(maxlen=_MOST_BEFORE)
        self._trial: _Trial | None = None

    def moved(self, experts: Experts) -> None:
        """Experts are being moved; ``experts`` is what was in slots before."""
        if self._trial is not None:
            self._trial.after.clear()
            return
        if not self._before:
            return
        batch = _bucket(self._before[-1].batch)
        same = [one.seconds for one in self._before if _bucket(one.batch) == batch]
        if len(same) >= _LEAST_BEFORE:
            self._trial = _Trial(experts, same, batch)

    def changed(self) -> None:
        """The workload or the engine is another one: nothing can be compared with before."""
        self._trial = None
        self._before.clear()

    def update(self, mean: StepTime) -> Setback | None:
        """Takes a mean in; a setback where a trial ends badly, which is then over."""
        trial = self._trial
        if trial is None:
            self._before.append(mean)
            return None
        if _bucket(mean.batch) != trial.batch:
            self.changed()
            return None
        trial.after.append(mean.seconds)
        if len(trial.after) < _AFTER:
            return None
        self._trial = None
        self._before.clear()
        before, after = fmean(trial.before), fmean(trial.after)
        noise = _SIGMAS * math.sqrt(
            variance(trial.before) / len(trial.before) + variance(trial.after) / len(trial.after)
        )
        if after - before > max(noise, _LEAST_LOSS * before):
            return Setback(before, after, noise, trial.experts)
        return None


def _bucket(batch: float) -> int:
    """Batch sizes that are compared with each other: powers of the square root of two."""
    return round(2 * math.log2(max(batch, 1.0)))
