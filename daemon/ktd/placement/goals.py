"""What a caller can ask for, and how it becomes a placement that is known to fit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from ktd.errors import ExpertNotFound, InvalidArgument, LayerNotFound, PlacementDoesNotFit
from ktd.placement.strategies.base import Choice
from ktd.placement.strategies.registry import live_placement

if TYPE_CHECKING:
    from collections.abc import Callable

    from ktd.placement.model import Experts, ModelShape
    from ktd.placement.strategies.base import Evidence


@dataclass(frozen=True, slots=True)
class StrategyGoal:
    """What the strategy of that name wants under the slots there are."""

    strategy: str


@dataclass(frozen=True, slots=True)
class ExplicitGoal:
    """Experts per model layer, in any order.

    Attributes:
        layers: Pairs of model layer and its experts.
        partial: True: layers that are not named stay as they are. False: all must be named.
    """

    layers: tuple[tuple[int, tuple[int, ...]], ...]
    partial: bool = False


Goal: TypeAlias = StrategyGoal | ExplicitGoal


def origin_of(goal: Goal) -> str:
    """What ``Placement.origin`` says of a placement that came from ``goal``."""
    return goal.strategy if isinstance(goal, StrategyGoal) else "explicit"


def resolve(
    goal: Goal, shape: ModelShape, current: Experts, evidence: Callable[[], Evidence]
) -> Choice:
    """The placement that ``goal`` asks for; only strategies look at ``evidence``, which costs.

    Raises:
        StrategyUnknown, StrategyFailed: there is no such strategy, or it does not work.
        LayerNotFound, ExpertNotFound: a target names what the model does not have.
        PlacementDoesNotFit: a target has more experts in a layer than the layer has slots.
        InvalidArgument: a layer is named twice, or is missing from a whole target.
    """
    if isinstance(goal, StrategyGoal):
        choice = live_placement(goal.strategy, shape, evidence=evidence())
        return _with_full_layers(choice, shape) if shape.full_stays_full else choice
    wanted: dict[int, tuple[int, ...]] = {}
    slots = dict(zip(shape.moe_layers, shape.slots, strict=True))
    for layer, experts in goal.layers:
        if layer not in slots:
            raise LayerNotFound(
                f"Layer {layer} has no experts: the MoE layers of this model are "
                f"{_ranges(shape.moe_layers)}."
            )
        if layer in wanted:
            raise InvalidArgument(f"Layer {layer} is named twice; name it once.")
        wanted[layer] = _checked(layer, experts, shape.num_experts, slots[layer])
        if shape.full_stays_full and len(wanted[layer]) < slots[layer] == shape.num_experts:
            raise PlacementDoesNotFit(
                f"Layer {layer} has a slot for every expert, so it has no CPU path and stays full "
                "until a restart; name all its experts, or start the engine with fewer slots."
            )
    missing = [layer for layer in shape.moe_layers if layer not in wanted]
    if missing and not goal.partial:
        raise InvalidArgument(
            f"The target does not name {'layer' if len(missing) == 1 else 'layers'} "
            f"{_ranges(missing)}; name every MoE layer, or mark the target as partial."
        )
    return Choice(
        tuple(
            wanted.get(layer, before)
            for layer, before in zip(shape.moe_layers, current, strict=True)
        )
    )


def _with_full_layers(choice: Choice, shape: ModelShape) -> Choice:
    """A strategy that would empty slots, as latency may, cannot do so in a layer that is full."""
    whole = tuple(range(shape.num_experts))
    return replace(
        choice,
        experts=tuple(
            whole if slots == shape.num_experts else chosen
            for chosen, slots in zip(choice.experts, shape.slots, strict=True)
        ),
    )


def _checked(layer: int, experts: tuple[int, ...], num_experts: int, slots: int) -> tuple[int, ...]:
    seen: set[int] = set()
    for expert in experts:
        if not 0 <= expert < num_experts:
            raise ExpertNotFound(
                f"Layer {layer} has no expert {expert}: its experts are 0 to {num_experts - 1}."
            )
        if expert in seen:
            raise ExpertNotFound(f"Expert {expert} of layer {layer} is named twice; name it once.")
        seen.add(expert)
    if len(seen) > slots:
        raise PlacementDoesNotFit(
            f"Layer {layer} has {slots} slots, but {len(seen)} experts were asked for; slots are "
            "fixed when the engine starts, with --num-gpu-experts or --gpu-experts-ratio, or by "
            "`ktd placement apply --restart`."
        )
    return tuple(sorted(seen))


def _ranges(numbers: list[int] | tuple[int, ...]) -> str:
    """``0-3, 5``: ascending numbers for people."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)
