"""The policy ``dynamic``: KTransformers' rule for ``--kt-enable-dynamic-expert-update``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ktd.policy.base import Choice
from ktd.policy.exchanges import FREE, candidates

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from ktd.policy.base import Mapped, Observation


class Dynamic:
    """A prefill of at least ``threshold`` tokens decides alone: each layer takes its top experts.

    As in KTransformers (kt_ep_wrapper.py, select_top_experts_from_batch): counts of this chunk and
    nothing else, no history, no decay, no hysteresis, decode never counts, slots per layer are
    fixed. Ties, which torch leaves open there, go to the lower id. What is in a slot already is not
    copied again, which KTransformers does.

    Args:
        slots: Slots per layer.
        threshold: Tokens of a chunk that decides; None: never, as without the flag.
    """

    name = "dynamic"

    def __init__(self, slots: Sequence[int], threshold: int | None) -> None:
        self._slots = np.array(slots, np.int64)
        self._threshold = threshold
        self._counts: NDArray[np.int64] | None = None
        self._seen = 0
        self._fired = 0

    def observe(self, seen: Observation) -> None:
        """Takes over a chunk that is long enough; several in one observation are taken together."""
        self._seen = max(self._seen, seen.prefill_tokens // max(1, seen.prefill_steps))
        if seen.prefill is None or self._threshold is None or not seen.prefill_steps:
            return
        if seen.prefill_tokens >= self._threshold * seen.prefill_steps:
            self._counts = seen.prefill.copy()
            self._fired += 1

    def decide(self, mapped: Mapped, limit: int | None = None) -> Sequence[Choice]:
        """What still differs from the last chunk's top experts."""
        return [choice for choice in self._differences(mapped) if not choice.reason][:limit]

    def dropped(self) -> None:
        """What still differs will be decided again."""

    def considered(self, mapped: Mapped, most: int) -> Sequence[Choice]:
        """The same, and what comes next, which the chunk used less than what is there."""
        return self._differences(mapped)[:most]

    def facts(self) -> Mapping[str, float]:
        """Threshold, and how near chunks came to it."""
        return {
            "threshold_tokens": float(self._threshold or 0),
            "longest_prefill_tokens": float(self._seen),
            "times_fired": float(self._fired),
        }

    def _differences(self, mapped: Mapped) -> list[Choice]:
        if self._counts is None:
            return []
        counts = self._counts
        # Lower ids win ties on either side.
        ties = np.arange(counts.shape[1]) / (2.0 * counts.shape[1])
        found = candidates(counts - ties, mapped, self._slots)
        choices = []
        for layer, rank in zip(*np.nonzero(found.valid), strict=True):
            load, evict = int(found.load[layer, rank]), int(found.evict[layer, rank])
            used = 0 if evict == FREE else int(counts[layer, evict])
            gain = float(counts[layer, load] - used)
            if gain < 0:
                continue
            better = found.score_load[layer, rank] > found.score_evict[layer, rank]
            reason = "" if better else "The chunk used neither more than the other."
            choices.append(
                Choice(
                    int(layer),
                    None if evict == FREE else evict,
                    load,
                    float(used),
                    float(counts[layer, load]),
                    gain,
                    noise=0.0,
                    cost=0.0,
                    reason=reason,
                )
            )
        return sorted(choices, key=lambda choice: (bool(choice.reason), -choice.gain))
