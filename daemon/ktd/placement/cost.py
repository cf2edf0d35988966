"""What a decode step takes under a placement: a model with few figures, each of them measurable.

A layer reads the weights of every expert that at least one token of the batch chose: those in slots
at the GPU's rate, the others at the CPU's. On a GPU host both happen at once, so a layer takes the
longer of the two; layers run one after another, so their times add up, and the rest of a step
(attention, head, scheduler) is a constant. Decode is bound by these reads; prefill, which computes
for hundreds of tokens per expert, is not what this model is about.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ktd.placement.model import Experts

Table: TypeAlias = "NDArray[Any]"


@dataclass(frozen=True, slots=True)
class CostModel:
    """Rates and fixed times; all defaults are of the size seen on a two-socket host with one GPU.

    Attributes:
        cpu_bytes_per_second: Expert weights that the CPU pools of all ranks read.
        cpu_layer_seconds: Fixed cost of a layer that has a CPU path: hand-over, waking, adding.
        gpu_bytes_per_second: Expert weights that the slots' kernels read, over all ranks.
        gpu_layer_seconds: Fixed cost of a layer that has slots.
        link_bytes_per_second: Copying experts into slots.
        other_step_seconds: What of a decode step is not experts.
        cpu_share: Bytes of an expert in host memory, by those of it in a slot: less than 1 where
            experts were quantised while they were loaded.
        overlap: Whether slots and CPU work at the same time; not where slots are host memory.
        measured: Names of the figures that come from this engine; the others are defaults.
    """

    cpu_bytes_per_second: float = 150e9
    cpu_layer_seconds: float = 30e-6
    gpu_bytes_per_second: float = 1.5e12
    gpu_layer_seconds: float = 20e-6
    link_bytes_per_second: float = 20e9
    other_step_seconds: float = 0.0
    cpu_share: float = 1.0
    overlap: bool = True
    measured: tuple[str, ...] = ()

    def layer_seconds(
        self, cpu_bytes: float, gpu_bytes: float, *, on_cpu: bool, in_slots: bool
    ) -> float:
        """One layer: ``on_cpu`` and ``in_slots`` say whether it has experts there at all.

        What it has costs its fixed time in every step, chosen or not: it is part of the graph.
        """
        cpu = self.cpu_layer_seconds * on_cpu + cpu_bytes / self.cpu_bytes_per_second
        gpu = self.gpu_layer_seconds * in_slots + gpu_bytes / self.gpu_bytes_per_second
        return max(cpu, gpu) if self.overlap else cpu + gpu

    def defaults(self) -> tuple[str, ...]:
        """Names of the figures that nobody has measured here."""
        names = (field.name for field in fields(self))
        known = (*self.measured, "cpu_share", "overlap", "measured")
        return tuple(name for name in names if name not in known)


def default_costs(device: str) -> CostModel:
    """Figures to begin with on ``"cuda"`` or ``"cpu"``.

    On a host without a GPU slots are host memory, read by the same cores one after the other: until
    it is measured, moving an expert is taken to change nothing.
    """
    if device != "cpu":
        return CostModel()
    rate = 20e9
    return CostModel(
        cpu_bytes_per_second=rate,
        cpu_layer_seconds=0.0,
        gpu_bytes_per_second=rate,
        gpu_layer_seconds=0.0,
        link_bytes_per_second=5e9,
        overlap=False,
    )


@dataclass(frozen=True, slots=True)
class StepCost:
    """A predicted decode step: seconds, and bytes that the CPU reads in it."""

    seconds: float
    cpu_bytes: float


def expected_use(counts: Table, experts_per_token: float, batch: float) -> Table:
    """For each expert, the probability that a decode step of ``batch`` tokens needs it.

    ``1 - (1 - p)^batch`` with p the expert's share of its layer's counts times the experts per
    token: tokens are taken to choose independently. Without counts all experts of a layer are
    equally likely.

    Args:
        counts: ``[layers, experts]``.
        experts_per_token: 0 where it is not known: then one.
        batch: Tokens per step.
    """
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.where(totals > 0, counts / np.where(totals > 0, totals, 1), 1 / counts.shape[1])
    missed = 1.0 - np.minimum(1.0, shares * max(experts_per_token, 1.0))
    found: Table = 1.0 - (missed if batch == 1 else missed**batch)
    return found


def predict_step(costs: CostModel, uses: Table, experts: Experts, expert_bytes: int) -> StepCost:
    """One decode step under a placement: all MoE layers, and what is not experts.

    Args:
        costs: The model.
        uses: ``[layers, experts]``, of :func:`expected_use`.
        experts: What is in slots.
        expert_bytes: Weight bytes of an expert in a slot.
    """
    num_experts = uses.shape[1]
    needed = uses.sum(axis=1) * expert_bytes
    in_slots = sums(uses, experts) * expert_bytes
    seconds, total = costs.other_step_seconds, 0.0
    for chosen, slot_bytes, all_bytes in zip(
        experts, in_slots.tolist(), needed.tolist(), strict=True
    ):
        cpu_bytes = max(0.0, all_bytes - slot_bytes) * costs.cpu_share
        total += cpu_bytes
        seconds += costs.layer_seconds(
            cpu_bytes, slot_bytes, on_cpu=len(chosen) < num_experts, in_slots=bool(chosen)
        )
    return StepCost(seconds, total)


def sums(values: Table, experts: Experts) -> Table:
    """Per layer, the sum of ``values[layer]`` over its chosen experts."""
    return np.array([row[list(of)].sum() for row, of in zip(values, experts, strict=True)])
