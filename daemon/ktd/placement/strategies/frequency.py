"""``frequency``: the experts that the router chose most often."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ktd.placement.strategies.base import (
    Choice,
    Evidence,
    even_split,
    heads,
    ranked,
    without_statistics,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


class Frequency:
    """KTransformers' ``frequency``: one global top-k of raw counts over all layers and experts.

    Torch leaves ties open; here the higher count comes first, then the lower layer, then the lower
    id. Without statistics the peer ranks an all-ones table, which is not even by construction;
    here that case is the even prefix split of ``uniform``.
    """

    name = "frequency"

    def initial(self, num_layers: int, num_experts: int, budget: int, evidence: Evidence) -> Choice:
        """See :class:`~ktd.placement.strategies.base.Strategy`."""
        counts = evidence.counted
        if counts is None:
            return without_statistics(self.name, even_split(num_layers, num_experts, budget))
        chosen = np.zeros(counts.size, bool)
        chosen[ranked(counts.reshape(-1))[:budget]] = True
        rows = chosen.reshape(counts.shape)
        return Choice(tuple(tuple(np.flatnonzero(row).tolist()) for row in rows))

    def live(self, num_experts: int, slots: Sequence[int], evidence: Evidence) -> Choice:
        """The top ``slots[i]`` of each layer."""
        del num_experts
        counts = evidence.counted
        if counts is None:
            return without_statistics(self.name, slots)
        return Choice(heads(ranked(counts), slots))
