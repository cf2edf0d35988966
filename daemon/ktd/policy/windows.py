"""Counts that fade, over several half-lives at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

# Half a pair on every expert, after Jeffreys: nothing that was not seen yet is impossible.
_PSEUDO_COUNT = 0.5


class DecayedCounts:
    """Pairs per expert, in which what was counted ``h`` tokens ago weighs half, for several h.

    Attributes:
        counts: float64 ``[windows, layers, experts]``.
        tokens: float64 ``[windows]``: the weight of all tokens together.
    """

    def __init__(self, half_lives: Sequence[float], layers: int, experts: int) -> None:
        self.half_lives = np.array(half_lives)
        self.counts = np.zeros((len(half_lives), layers, experts))
        self.tokens = np.zeros(len(half_lives))

    def add(self, counts: NDArray[np.float64], tokens: float) -> None:
        """Takes in ``counts`` of ``tokens`` tokens; everything older fades by as many."""
        kept = np.exp2(-tokens / self.half_lives)
        self.counts *= kept[:, None, None]
        self.counts += counts
        self.tokens = self.tokens * kept + tokens

    def shares(self) -> NDArray[np.float64]:
        """Forecast of a layer's next pairs ``[windows, layers, experts]``; adds up to 1 a layer."""
        smoothed: NDArray[np.float64] = self.counts + _PSEUDO_COUNT
        smoothed /= smoothed.sum(axis=2, keepdims=True)
        return smoothed

    def rates(self) -> NDArray[np.float64]:
        """Uses per token ``[windows, layers, experts]``."""
        found: NDArray[np.float64] = self.counts / np.maximum(self.tokens, 1e-9)[:, None, None]
        return found


def log_likelihood(shares: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """How well forecasts ``[n, layers, experts]`` met ``[layers, experts]``: nats ``[n]``."""
    found: NDArray[np.float64] = np.tensordot(np.log(shares), counts, axes=2)
    return found


class BestWindow:
    """Decayed counts whose half-lives compete: the one that forecasts best is believed most.

    Each chunk of tokens is first forecast by every window and then counted in it, so that no window
    is judged by what it has seen; weights follow from the likelihoods, as of models of which one is
    true. All layers judge together: the workload changes for all of them.
    """

    def __init__(
        self, half_lives: Sequence[float], fit_half_life: float, layers: int, experts: int
    ) -> None:
        self.windows = DecayedCounts(half_lives, layers, experts)
        self._fit_half_life = fit_half_life
        self._fit = np.zeros(len(half_lives))

    def judge(self, likelihoods: NDArray[np.float64], tokens: float) -> None:
        """Remembers how well each window forecast the last ``tokens`` tokens."""
        self._fit = self._fit * np.exp2(-tokens / self._fit_half_life) + likelihoods

    def cut(self, short: int) -> None:
        """Forgets what only windows longer than number ``short`` remember."""
        self.windows.counts[short + 1 :] = self.windows.counts[short]
        self.windows.tokens[short + 1 :] = self.windows.tokens[short]
        self._fit[:] = 0.0

    def weights(self) -> NDArray[np.float64]:
        """How much each window is believed; adds up to 1."""
        weights: NDArray[np.float64] = np.exp(self._fit - self._fit.max())
        weights /= weights.sum()
        return weights
