"""What a placement strategy is: two pure functions under a name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from ktd.placement.cost import CostModel, expected_use

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from ktd.placement.model import Experts

# Per MoE layer, per expert: how often the router chose it; lists, or an array [layers, experts].
Counts: TypeAlias = "Sequence[Sequence[float]] | NDArray[Any]"
# The same as an array of numbers.
Table: TypeAlias = "NDArray[Any]"
# [layers, experts, experts], symmetric: how often one token chose both; the diagonal is Counts.
PairCounts: TypeAlias = "NDArray[Any]"


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What a strategy may know of the routing and of the machine.

    Attributes:
        counts: Per MoE layer and expert, which strategies choose by; None if nothing was counted.
        recent: The same of late, which plans are judged by; None: ``counts``.
        pairs: Which experts are chosen by the same token; None where nobody has recorded that.
        batch: Tokens per decode step.
        experts_per_token: Experts that the router chooses for a token; 0 if not known, then one.
        expert_bytes: Weight bytes of an expert in a slot.
        costs: What a step takes.
        step_seconds: A decode step as it was measured under the placement of now; 0 if it was not.
    """

    counts: Counts | None = None
    recent: Counts | None = None
    pairs: PairCounts | None = None
    batch: float = 1.0
    experts_per_token: float = 0.0
    expert_bytes: int = 1
    costs: CostModel = field(default_factory=CostModel)
    step_seconds: float = 0.0

    @property
    def counted(self) -> Table | None:
        """The counts as a table, or None if there are none or all are zero."""
        return table_of(self.counts)

    @property
    def judged_by(self) -> Table | None:
        """The recent counts where there are any, else :attr:`counted`."""
        recent = table_of(self.recent)
        return self.counted if recent is None else recent

    def uses(self) -> Table | None:
        """How likely a decode step needs each expert, or None if nothing was counted."""
        return self.uses_of(self.counted)

    def uses_of(self, counts: Table | None) -> Table | None:
        """The same by other counts."""
        if counts is None:
            return None
        return expected_use(counts, self.experts_per_token, self.batch)


@dataclass(frozen=True, slots=True)
class Choice:
    """The experts that a strategy chose, and sentences about it that an operator should read."""

    experts: Experts
    notes: tuple[str, ...] = ()


class Strategy(Protocol):
    """A way to choose experts; instances hold no state, and the same input has the same answer.

    A package brings its own as an entry point of the group ``ktd.placement_strategies`` that leads
    to a class or an instance.
    """

    @property
    def name(self) -> str:
        """What ``--expert-placement-strategy`` calls it."""
        ...

    def initial(self, num_layers: int, num_experts: int, budget: int, evidence: Evidence) -> Choice:
        """Chooses at most ``budget`` experts over all MoE layers; so fixes the slots per layer."""
        ...

    def live(self, num_experts: int, slots: Sequence[int], evidence: Evidence) -> Choice:
        """Chooses at most ``slots[i]`` experts of the i-th MoE layer."""
        ...


def prefixes(sizes: Sequence[int]) -> Experts:
    """The lowest ids of each layer."""
    return tuple(tuple(range(size)) for size in sizes)


def even_split(num_layers: int, num_experts: int, budget: int) -> list[int]:
    """``budget`` over the layers: the first ``budget % num_layers`` get one more; clamped."""
    if not num_layers:
        return []
    share, rest = divmod(budget, num_layers)
    return [min(num_experts, share + (index < rest)) for index in range(num_layers)]


def table_of(counts: Counts | None) -> Table | None:
    """An array ``[layers, experts]``, or None if there are no counts or all are zero."""
    if counts is None:
        return None
    table = np.asarray(counts)
    return table if table.size and table.any() else None


def ranked(values: Table) -> Table:
    """Indices along the last axis, the highest value first; of equal ones the lower index."""
    if values.dtype.kind == "u":
        values = values.astype(np.int64)
    return np.argsort(-values, axis=-1, kind="stable")


def heads(order: Table, sizes: Sequence[int] | Table) -> Experts:
    """The first ``sizes[i]`` of each row of ranked experts, ascending."""
    return tuple(
        tuple(np.sort(row[:size]).tolist()) for row, size in zip(order, sizes, strict=True)
    )


def without_statistics(name: str, sizes: Sequence[int]) -> Choice:
    """What strategies that rank by counts do where nothing was counted: the lowest ids."""
    note = (
        f"There are no activation statistics yet, so {name} places as uniform does: "
        "send requests first, or give a file with --init-expert-location."
    )
    return Choice(prefixes(sizes), (note,))
