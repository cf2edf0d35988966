"""Exponentially decayed rates: how often each expert is chosen now, with the past fading."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ktd.stats.model import Sample

HALF_LIFE = 60.0


@dataclass(frozen=True, slots=True, eq=False)
class Rates:
    """Rates at one moment.

    Attributes:
        time: Unix seconds.
        half_life: Seconds in which the weight of what was counted halves.
        moe_layers: Model layer indices, in the order of ``per_second``.
        per_second: float64 ``[kind, layer, expert, tier]``, as ``Sample.counts``: (token, expert)
            pairs per second.
    """

    time: float
    half_life: float
    moe_layers: tuple[int, ...]
    per_second: NDArray[np.float64]


class DecayedRates:
    """Follows one model's counters through its engines.

    Work that was counted ``t`` seconds ago weighs ``2 ** (-t / half_life)``; divided by the sum of
    all weights that makes pairs per second. What was counted between two samples is taken as spread
    evenly, so that sampling more often does not change the rates of steady traffic.
    """

    def __init__(self, half_life: float = HALF_LIFE) -> None:
        self.half_life = half_life
        self._rates: NDArray[np.float64] | None = None
        self._moe_layers: tuple[int, ...] = ()
        self._last: Sample | None = None
        self._time = 0.0

    def update(self, sample: Sample) -> None:
        """Takes a sample in; one of another engine begins at zero, one of another model afresh."""
        rates, last = self._rates, self._last
        if rates is None or rates.shape != sample.counts.shape:
            rates, last = np.zeros(sample.counts.shape), None
            self._time = min(sample.start_time, sample.time)
        if last is not None and last.engine_id == sample.engine_id:
            counted = sample.counts - last.counts
        else:
            counted = sample.counts
        elapsed = sample.time - self._time
        if elapsed <= 0:  # the host's clock was set back, or two samples at once: wait for the next
            return
        keep = self._kept(elapsed)
        self._rates = rates * keep + counted * ((1 - keep) / elapsed)
        self._moe_layers, self._last, self._time = sample.moe_layers, sample, sample.time

    def at(self, time: float) -> Rates | None:
        """The rates, faded until ``time``; None before the first sample."""
        if self._rates is None:
            return None
        faded = self._rates * self._kept(max(0.0, time - self._time))
        return Rates(time, self.half_life, self._moe_layers, faded)

    def _kept(self, seconds: float) -> float:
        return math.exp2(-seconds / self.half_life)
