"""What recorded routing and the cost model say of a placement."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ktd.placement.cost import predict_step, sums
from ktd.placement.strategies.base import table_of

if TYPE_CHECKING:
    from ktd.placement.cost import CostModel
    from ktd.placement.model import Experts
    from ktd.placement.strategies.base import Counts, Evidence


@dataclass(frozen=True, slots=True)
class Forecast:
    """A placement under the recent statistics; all 0 without them.

    Attributes:
        hit_rate: Share of the (token, expert) pairs whose expert is in a slot.
        step_seconds: A decode step at the batch size seen.
        tokens_per_second: Decoded tokens, of all requests together.
        cpu_bytes: Expert weights that the CPU reads in such a step.
    """

    hit_rate: float = 0.0
    step_seconds: float = 0.0
    tokens_per_second: float = 0.0
    cpu_bytes: float = 0.0


class Forecaster:
    """Judges placements by one reading of the evidence.

    Args:
        evidence: As of now.
        current: What is in slots now: the step that was measured ran under it, so what the model
            leaves of it unexplained is the part of a step that is not experts.
    """

    def __init__(self, evidence: Evidence, current: Experts) -> None:
        self._counts = evidence.judged_by
        self._uses = evidence.uses_of(self._counts)
        self._batch = evidence.batch
        self._expert_bytes = evidence.expert_bytes
        costs = evidence.costs
        if self._counts is not None and evidence.step_seconds > 0:
            costs = calibrated(costs, evidence.step_seconds, self._seconds(costs, current))
        # Figures as they are used: what was measured, and defaults for the rest.
        self.costs = costs

    def of(self, experts: Experts) -> Forecast:
        """The forecast for ``experts`` in slots."""
        if self._counts is None or self._uses is None:
            return Forecast()
        step = predict_step(self.costs, self._uses, experts, self._expert_bytes)
        return Forecast(
            hit_rate=hit_rate(experts, self._counts),
            step_seconds=step.seconds,
            tokens_per_second=self._batch / step.seconds if step.seconds else 0.0,
            cpu_bytes=step.cpu_bytes,
        )

    def note(self) -> str:
        """Which figures are defaults, in one sentence; empty if there is no forecast, or none."""
        defaults = self.costs.defaults()
        if self._counts is None or not defaults:
            return ""
        return f"Predicted speed rests on defaults, not on measurements, for {', '.join(defaults)}."

    def _seconds(self, costs: CostModel, experts: Experts) -> float:
        if self._uses is None:
            return 0.0
        return predict_step(costs, self._uses, experts, self._expert_bytes).seconds


def calibrated(costs: CostModel, measured: float, predicted: float) -> CostModel:
    """``costs`` so that a step that is ``predicted`` to take so many seconds takes the measured.

    What is missing is the rest of a step; a model that is too slow is made faster as a whole.
    """
    names = tuple(dict.fromkeys((*costs.measured, "other_step_seconds")))
    if measured >= predicted:
        other = costs.other_step_seconds + measured - predicted
        return replace(costs, other_step_seconds=other, measured=names)
    factor = measured / predicted
    return replace(
        costs,
        cpu_bytes_per_second=costs.cpu_bytes_per_second / factor,
        gpu_bytes_per_second=costs.gpu_bytes_per_second / factor,
        cpu_layer_seconds=costs.cpu_layer_seconds * factor,
        gpu_layer_seconds=costs.gpu_layer_seconds * factor,
        other_step_seconds=costs.other_step_seconds * factor,
        measured=names,
    )


def hit_rate(experts: Experts, counts: Counts | None) -> float:
    """Share of the counted (token, expert) pairs whose expert is in ``experts``; 0 for none."""
    table = table_of(counts)
    if table is None:
        return 0.0
    return float(sums(table, experts).sum() / table.sum())
