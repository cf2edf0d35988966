"""How often will each expert be used over the next so many tokens, and how sure is that?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ktd.policy.drift import DriftDetector, ShiftClock
from ktd.policy.recurrence import Recurrence
from ktd.policy.windows import BestWindow, DecayedCounts, log_likelihood

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ktd.policy.settings import AdaptiveSettings

# The window that speaks for a change, and begins the memory of the new state: 128 tokens.
_SHORT = 1
# Tokens of a chunk that can be judged by itself.
_LONG_CHUNK = 384.0
_DISPERSION_HALF_LIFE = 2048.0


@dataclass(frozen=True, slots=True, eq=False)
class Forecast:
    """What is expected.

    Attributes:
        scores: Uses per token ``[layers, experts]``, averaged over the horizon.
        variance: A score's variance is this times the score, as of a count.
    """

    scores: NDArray[np.float64]
    variance: float


class Forecaster:
    """Three memories, and for how much of the horizon each is believed.

    *Local*: the best of several short and long windows (:class:`BestWindow`); what it says holds
    for a few of its own half-lives. *Regime*: everything since the workload changed last
    (:class:`DriftDetector`); holds until it changes again (:class:`ShiftClock`). *Past*: all there
    was; stands for what comes then, as far as the past has told that before (:class:`Recurrence`).
    Both times are taken as exponential, so that over a horizon H a memory that holds for D has the
    weight ``D / H * (1 - exp(-H / D))``, less that of the memories before it.
    """

    def __init__(self, settings: AdaptiveSettings, layers: int, experts: int) -> None:
        self._settings = settings
        self._best = BestWindow(settings.half_lives, settings.fit_half_life, layers, experts)
        self._regime = DecayedCounts((settings.regime_half_life,), layers, experts)
        self._past = DecayedCounts((settings.past_half_life,), layers, experts)
        self._drift = DriftDetector(settings.drift_excess, settings.drift_evidence)
        self.recurrence = Recurrence()
        self.shifts = ShiftClock(settings.prior_dwell, settings.remembered_shifts)
        # Variance of counts over that of independent tokens: quasi-Poisson, at least 1.
        self.dispersion = 1.0
        self.tokens = 0.0
        self.pairs = 0.0

    def update(self, counts: NDArray[np.float64], tokens: float) -> None:
        """Learns from ``counts`` ``[layers, experts]`` of ``tokens`` tokens."""
        changed = self._judge(counts, tokens) if self.tokens else False
        self.tokens += tokens
        self.pairs += float(counts.sum())
        for memory in (self._best.windows, self._regime, self._past):
            memory.add(counts, tokens)
        if changed:
            self.shifts.shifted(self.tokens)
            self._best.cut(_SHORT)
            self._regime.counts[0] = self._best.windows.counts[_SHORT]
            self._regime.tokens[0] = self._best.windows.tokens[_SHORT]
            self.recurrence.shifted(self._past.shares()[0])

    @property
    def use(self) -> float:
        """Uses per token of an expert of average use."""
        size = self._regime.counts[0].size
        return self.pairs / (self.tokens * size) if self.tokens else 0.0

    @property
    def dwell(self) -> float:
        """Tokens that the present state of the workload is expected to last."""
        return self.shifts.dwell(self.tokens)

    @property
    def half_life(self) -> float:
        """Of the windows that are believed now."""
        return float(self._best.weights() @ self._best.windows.half_lives)

    def over(self, horizon: float) -> Forecast:
        """The forecast for the next ``horizon`` tokens."""
        weights = self._best.weights()
        best = self._best.windows
        local = np.tensordot(weights, best.rates(), axes=1)
        regime_share = _share(self.dwell, horizon)
        lasting = 1 / (1 / (self._settings.persistence * self.half_life) + 1 / self.dwell)
        local_share = _share(lasting, horizon)
        shares = np.array(
            [
                local_share,
                regime_share - local_share,
                (1 - regime_share) * self.recurrence.trust,
            ]
        )
        rates = (local, self._regime.rates()[0], self._past.rates()[0])
        scores = sum(share * rate for share, rate in zip(shares, rates, strict=True))
        sizes = np.array([weights @ best.tokens, self._regime.tokens[0], self._past.tokens[0]])
        return Forecast(
            np.asarray(scores), _variance(shares, np.maximum(sizes, 1.0)) * self.dispersion
        )

    def _judge(self, counts: NDArray[np.float64], tokens: float) -> bool:
        """Whether the workload changed, judged by forecasts made before ``counts`` were known."""
        total = counts.sum()
        if not total:
            return False
        local = log_likelihood(self._best.windows.shares(), counts)
        regime = self._regime.shares()
        known = float(log_likelihood(regime, counts)[0])
        excess = (float(local[_SHORT]) - known) / total
        if tokens >= _LONG_CHUNK:
            excess = max(excess, (self._own(counts) - known) / total)
        self._best.judge(local, tokens)
        if self._drift.quiet(excess):
            self._disperse(regime[0], counts, tokens)
        self.recurrence.update(counts, tokens, self.dispersion)
        return self._drift.update(excess, tokens)

    def _own(self, counts: NDArray[np.float64]) -> float:
        """What a chunk would have been forecast by itself, less what it owes to having seen itself.

        A long chunk is a change at once, where a short one only makes the next one expected. Half a
        nat for each free share of a layer is the bias of a maximum (Akaike), times the dispersion.
        """
        layers, experts = counts.shape
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0)
        fitted = float((counts * np.log(np.maximum(shares, 1e-12))).sum())
        bias: float = self.dispersion * layers * (experts - 1)
        return fitted - bias

    def _disperse(
        self, shares: NDArray[np.float64], counts: NDArray[np.float64], tokens: float
    ) -> None:
        expected = shares * counts.sum(axis=1, keepdims=True)
        layers, experts = counts.shape
        degrees = layers * max(experts - 1, 1)
        chi_squared = float(((counts - expected) ** 2 / np.maximum(expected, 1e-9)).sum())
        kept = math.exp2(-tokens / _DISPERSION_HALF_LIFE)
        self.dispersion = max(1.0, self.dispersion * kept + (1 - kept) * chi_squared / degrees)


def _share(lasting: float, horizon: float) -> float:
    """Of a horizon, the expected share before an exponential time of mean ``lasting`` ends."""
    return lasting / horizon * -math.expm1(-horizon / lasting)


def _variance(shares: NDArray[np.float64], sizes: NDArray[np.float64]) -> float:
    """Of a sum of faded means of the same counts, per unit of rate.

    Two memories with weights of n and m tokens share what is recent: their covariance is 1/(n + m)
    once both have faded for long; the variance of one alone is taken as 1/n, which is right while
    it fills and careful afterwards.
    """
    own = float((shares**2 / sizes).sum())
    cross = sum(
        2 * shares[i] * shares[j] / (sizes[i] + sizes[j])
        for i in range(len(shares))
        for j in range(i)
    )
    return own + float(cross)
