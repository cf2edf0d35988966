"""The strategies by name, and the two ways to use one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ktd.errors import StrategyUnknown
from ktd.placement.strategies.frequency import Frequency
from ktd.placement.strategies.front_loading import FrontLoading
from ktd.placement.strategies.shuffled import Shuffled
from ktd.placement.strategies.uniform import Uniform

if TYPE_CHECKING:
    from ktd.placement.model import ModelShape
    from ktd.placement.strategies.base import Choice, Counts, Strategy

STRATEGIES: dict[str, Strategy] = {
    strategy.name: strategy for strategy in (Uniform(), Frequency(), FrontLoading(), Shuffled())
}


def strategy_named(name: str) -> Strategy:
    """The strategy called ``name``.

    Raises:
        StrategyUnknown: there is none.
    """
    strategy = STRATEGIES.get(name)
    if strategy is None:
        raise StrategyUnknown(
            f"There is no placement strategy {name!r}: choose one of {', '.join(STRATEGIES)}."
        )
    return strategy


def initial_placement(
    strategy: str, num_layers: int, num_experts: int, budget: int, counts: Counts | None = None
) -> Choice:
    """What an engine starts with; the size of each layer's set is its number of slots.

    Args:
        strategy: Name of a strategy.
        num_layers: Number of MoE layers.
        num_experts: Routed experts per MoE layer.
        budget: Slots over all layers; more than there are experts is clamped, with a note.
        counts: ``[num_layers][num_experts]`` activation counts, or None.

    Raises:
        StrategyUnknown: there is no such strategy.
    """
    total = num_layers * num_experts
    choice = strategy_named(strategy).initial(num_layers, num_experts, min(budget, total), counts)
    if budget <= total:
        return choice
    note = f"The budget of {budget} slots was lowered to the model's {total} experts."
    return replace(choice, notes=(*choice.notes, note))


def live_placement(strategy: str, shape: ModelShape, counts: Counts | None = None) -> Choice:
    """What a strategy wants under the slots that a running engine has.

    Raises:
        StrategyUnknown: there is no such strategy.
    """
    return strategy_named(strategy).live(shape.num_experts, shape.slots, counts)
