"""What a placement strategy is: two pure functions under a name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ktd.placement.model import Experts

# Per MoE layer, per expert: how often the router chose it.
Counts: TypeAlias = "Sequence[Sequence[float]]"


@dataclass(frozen=True, slots=True)
class Choice:
    """The experts that a strategy chose, and sentences about it that an operator should read."""

    experts: Experts
    notes: tuple[str, ...] = ()


class Strategy(Protocol):
    """A way to choose experts; instances hold no state."""

    @property
    def name(self) -> str:
        """What ``--expert-placement-strategy`` calls it."""
        ...

    def initial(
        self, num_layers: int, num_experts: int, budget: int, counts: Counts | None
    ) -> Choice:
        """Chooses at most ``budget`` experts over all MoE layers; so fixes the slots per layer."""
        ...

    def live(self, num_experts: int, slots: Sequence[int], counts: Counts | None) -> Choice:
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
