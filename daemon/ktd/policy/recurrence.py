"""Does the past say what comes after a change? Some workloads come back, others never do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ktd.policy.base import DECISION_TOKENS
from ktd.policy.windows import log_likelihood

if TYPE_CHECKING:
    from numpy.typing import NDArray

_GRID = np.array([0.0, 0.1, 0.25, 0.5, 0.75, 1.0])
# Tokens after a change in which the forecast of the past is judged.
_JUDGED = 512.0
# What an earlier change has taught, after another one.
_KEPT = 0.7


class Recurrence:
    """The share of the past in a forecast of what an unknown next state of the workload uses.

    After each change the first tokens judge mixtures of the past, frozen at the change, and of the
    even distribution. The likelihoods are tempered, as tokens of one subject are not independent.

    Attributes:
        trust: From 0, the past says nothing, to 1; the mean over the grid's posterior.
    """

    def __init__(self) -> None:
        self.trust = 0.5
        self._evidence = np.zeros(len(_GRID))
        self._frozen: NDArray[np.float64] | None = None
        self._left = 0.0

    def shifted(self, past: NDArray[np.float64]) -> None:
        """The workload changed; ``past`` is the forecast ``[layers, experts]`` of all before."""
        self._frozen = past
        self._left = _JUDGED
        self._evidence *= _KEPT

    def update(self, counts: NDArray[np.float64], tokens: float, dispersion: float) -> None:
        """Judges by a chunk; ``dispersion``: variance of counts over that of independent ones."""
        if self._frozen is None or self._left <= 0:
            return
        self._left -= tokens
        mixed = _GRID[:, None, None] * self._frozen
        mixed += (1 - _GRID[:, None, None]) / counts.shape[1]
        self._evidence += log_likelihood(mixed, counts) / (dispersion * DECISION_TOKENS)
        posterior = np.exp(self._evidence - self._evidence.max())
        self.trust = float((posterior * _GRID).sum() / posterior.sum())
