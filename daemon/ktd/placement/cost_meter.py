"""Measures the figures of the cost model on the engine that runs."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import median, quantiles
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ktd.placement.cost import CostModel

# Stretches of about a second that are remembered.
_MOST = 40
_FEWEST_STEPS = 3
# Fewer, or of too equal CPU bytes, say nothing of the rate.
_FEWEST_STRETCHES = 8
_SMALLEST_SPREAD = 0.15
# Stretches whose batch differs more from now are of other traffic.
_ALIKE = 0.25
_MOST_COPIES = 20


@dataclass(frozen=True, slots=True)
class StepCounters:
    """Counters of one engine at one moment; bytes over all ranks, ``time`` in Unix seconds."""

    time: float
    engine_id: str
    decode_steps: int
    decode_tokens: int
    prefill_steps: int
    cpu_weight_bytes: int


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Decoding between two readings, per step."""

    seconds: float
    tokens: float
    cpu_bytes: float


class CostMeter:
    """Follows counters and copies.

    A decode step's time is read from stretches between two readings in which nothing was
    prefilled. Idle times in them only make steps look longer, so the lower quartile counts. The
    CPU's rate is the slope of that time over the bytes that the CPU read (the median of all pairs'
    slopes, after Theil and Sen, which a few idle stretches do not bend): it shows as soon as
    batches or placements have differed.

    Args:
        base: Figures for what is not measured yet.
    """

    def __init__(self, base: CostModel) -> None:
        self._base = base
        self._last: StepCounters | None = None
        self._stretches: deque[_Stretch] = deque(maxlen=_MOST)
        self._copies: deque[tuple[int, float]] = deque(maxlen=_MOST_COPIES)

    def counted(self, now: StepCounters) -> None:
        """Takes a reading in; one of another engine starts anew."""
        last, self._last = self._last, now
        if last is None or last.engine_id != now.engine_id:
            self._stretches.clear()
            return
        steps = now.decode_steps - last.decode_steps
        elapsed = now.time - last.time
        if steps < _FEWEST_STEPS or now.prefill_steps != last.prefill_steps or elapsed <= 0:
            return
        self._stretches.append(
            _Stretch(
                elapsed / steps,
                (now.decode_tokens - last.decode_tokens) / steps,
                (now.cpu_weight_bytes - last.cpu_weight_bytes) / steps,
            )
        )

    def copied(self, size: int, seconds: float) -> None:
        """A swap has copied ``size`` bytes, over all ranks."""
        if size > 0 and seconds > 0:
            self._copies.append((size, seconds))

    @property
    def batch(self) -> float:
        """Tokens per decode step of late; 0 before the first."""
        return self._stretches[-1].tokens if self._stretches else 0.0

    @property
    def step_seconds(self) -> float:
        """A decode step of late at that batch; 0 before enough was seen."""
        alike = [
            stretch.seconds
            for stretch in self._stretches
            if abs(stretch.tokens - self.batch) <= _ALIKE * self.batch
        ]
        if not alike:
            return 0.0
        return quantiles(alike, n=4, method="inclusive")[0] if len(alike) > 1 else alike[0]

    def costs(self, cpu_share: float = 1.0) -> CostModel:
        """The model with every figure that has been measured, and their names.

        Args:
            cpu_share: As the model has it: it follows from the experts' formats.
        """
        costs = replace(self._base, cpu_share=cpu_share)
        if self._copies:
            size = sum(size for size, _ in self._copies)
            seconds = sum(seconds for _, seconds in self._copies)
            costs = replace(
                costs,
                link_bytes_per_second=size / seconds,
                measured=(*costs.measured, "link_bytes_per_second"),
            )
        slope = self._seconds_per_byte()
        if slope is None:
            return costs
        # Where both sides take turns a byte that leaves the CPU still costs its time in a slot.
        in_slot = 1 / (costs.gpu_bytes_per_second * cpu_share)
        per_byte = slope if costs.overlap else slope + in_slot
        if per_byte <= 0:
            return costs
        return replace(
            costs,
            cpu_bytes_per_second=1 / per_byte,
            measured=(*costs.measured, "cpu_bytes_per_second"),
        )

    def _seconds_per_byte(self) -> float | None:
        sizes = [stretch.cpu_bytes for stretch in self._stretches]
        if len(sizes) < _FEWEST_STRETCHES:
            return None
        least = _SMALLEST_SPREAD * max(sizes)
        slopes = [
            (one.seconds - other.seconds) / (one.cpu_bytes - other.cpu_bytes)
            for one, other in combinations(self._stretches, 2)
            if abs(one.cpu_bytes - other.cpu_bytes) > least
        ]
        return median(slopes) if len(slopes) >= _FEWEST_STRETCHES else None
