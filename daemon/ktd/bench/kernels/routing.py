"""Experts drawn at random, as a router would, but none that a cache could still hold."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


class Routing:
    """Draws the experts of one call after another, over layers in turn.

    A model comes back to a layer after all its others, which are larger than any cache. Here there
    are only a few layers, so an expert rests until ``rest_bytes`` of others have been read, as long
    as that leaves at least half of the layer to draw from.

    Args:
        layers: Number of layers.
        experts: Experts of each.
        top_k: Distinct experts of a token.
        expert_bytes: Of one expert.
        rest_bytes: See above.
        seed: Of the random numbers.
    """

    def __init__(
        self,
        *,
        layers: int,
        experts: int,
        top_k: int,
        expert_bytes: int,
        rest_bytes: int,
        seed: int = 0,
    ) -> None:
        self._random = np.random.default_rng(seed)
        self._top_k = top_k
        self._expert_bytes = expert_bytes
        self._rest_bytes = rest_bytes
        self._read = 0
        self._last = np.full((layers, experts), -(1 << 62), dtype=np.int64)
        self._layer = -1

    def draw(self, tokens: int) -> tuple[int, npt.NDArray[np.int32]]:
        """The next layer, and int32 ``[tokens, top_k]`` of its experts."""
        self._layer = (self._layer + 1) % len(self._last)
        last = self._last[self._layer]
        rested = np.flatnonzero(self._read - last >= self._rest_bytes)
        if len(rested) < max(self._top_k, len(last) // 2):
            rested = np.argsort(last, kind="stable")[: max(self._top_k, len(last) // 2)]
            if tokens * self._top_k >= len(last):  # the call reads most of the layer anyway
                rested = np.arange(len(last))
        keys = self._random.random((tokens, len(rested)), dtype=np.float32)
        chosen = np.argpartition(keys, self._top_k - 1, axis=1)[:, : self._top_k]
        ids = np.ascontiguousarray(rested[chosen], dtype=np.int32)
        distinct = np.unique(ids)
        self._read += len(distinct) * self._expert_bytes
        last[distinct] = self._read
        return self._layer, ids
