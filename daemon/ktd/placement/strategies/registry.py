"""The strategies by name, ktd's own and those of other packages, and the two ways to use one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ktd.errors import KtdError, StrategyFailed, StrategyUnknown
from ktd.placement.strategies.balanced import Balanced
from ktd.placement.strategies.base import Evidence
from ktd.placement.strategies.coactivation import Coactivation
from ktd.placement.strategies.frequency import Frequency
from ktd.placement.strategies.front_loading import FrontLoading
from ktd.placement.strategies.latency import Latency
from ktd.placement.strategies.plugins import Plugins, installed_plugins
from ktd.placement.strategies.shuffled import Shuffled
from ktd.placement.strategies.uniform import Uniform

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ktd.placement.model import Experts, ModelShape
    from ktd.placement.strategies.base import Choice, Counts, Strategy

STRATEGIES: dict[str, Strategy] = {
    strategy.name: strategy
    for strategy in (
        Uniform(),
        Frequency(),
        FrontLoading(),
        Shuffled(),
        Balanced(),
        Latency(),
        Coactivation(),
    )
}


def plugins() -> Plugins:
    """What other packages of this environment bring; looked up once."""
    return installed_plugins(frozenset(STRATEGIES))


def strategy_names() -> tuple[str, ...]:
    """All that can be chosen, ktd's own first."""
    return (*STRATEGIES, *plugins().strategies)


def strategy_named(name: str) -> Strategy:
    """The strategy called ``name``.

    Raises:
        StrategyUnknown: there is none; or another package brings it, but it cannot be used.
    """
    strategy = STRATEGIES.get(name) or plugins().strategies.get(name)
    if strategy is None:
        broken = plugins().broken.get(name)
        raise StrategyUnknown(
            broken
            or f"There is no placement strategy {name!r}: choose one of "
            f"{', '.join(strategy_names())}."
        )
    return strategy


def initial_placement(
    strategy: str,
    num_layers: int,
    num_experts: int,
    budget: int,
    counts: Counts | None = None,
    *,
    evidence: Evidence | None = None,
) -> Choice:
    """What an engine starts with; the size of each layer's set is its number of slots.

    Args:
        strategy: Name of a strategy.
        num_layers: Number of MoE layers.
        num_experts: Routed experts per MoE layer.
        budget: Slots over all layers; more than there are experts is clamped, with a note.
        counts: ``[num_layers][num_experts]`` activation counts, or None.
        evidence: Instead of ``counts``, for strategies that want to know more.

    Raises:
        StrategyUnknown: there is no such strategy.
        StrategyFailed: another package's strategy raised, or chose what it may not.
    """
    total = num_layers * num_experts
    known = _evidence(evidence, counts)
    chosen = _guarded(
        strategy,
        lambda one: one.initial(num_layers, num_experts, min(budget, total), known),
        lambda experts: (
            _complaint(experts, [num_experts] * num_layers, num_experts)
            or _over(experts, min(budget, total))
        ),
    )
    if budget <= total:
        return chosen
    note = f"The budget of {budget} slots was lowered to the model's {total} experts."
    return replace(chosen, notes=(*chosen.notes, note))


def live_placement(
    strategy: str,
    shape: ModelShape,
    counts: Counts | None = None,
    *,
    evidence: Evidence | None = None,
) -> Choice:
    """What a strategy wants under the slots that a running engine has.

    Raises:
        StrategyUnknown: there is no such strategy.
        StrategyFailed: another package's strategy raised, or chose what it may not.
    """
    known = _evidence(evidence, counts)
    return _guarded(
        strategy,
        lambda one: one.live(shape.num_experts, shape.slots, known),
        lambda experts: _complaint(experts, shape.slots, shape.num_experts),
    )


def _evidence(evidence: Evidence | None, counts: Counts | None) -> Evidence:
    if evidence is None:
        return Evidence(counts=counts)
    return evidence if counts is None else replace(evidence, counts=counts)


def _guarded(
    name: str, call: Callable[[Strategy], Choice], complaint: Callable[[Experts], str]
) -> Choice:
    """Asks a strategy; one that is not ktd's own is not trusted to do what it should."""
    strategy = strategy_named(name)
    if name in STRATEGIES:
        return call(strategy)
    try:
        choice = call(strategy)
        experts = tuple(tuple(sorted(map(int, chosen))) for chosen in choice.experts)
        what = complaint(experts)
        notes = tuple(map(str, choice.notes))
    except KtdError:
        raise
    except Exception as failure:  # foreign code may raise anything
        raise StrategyFailed(
            f"The strategy {name!r} failed ({type(failure).__name__}: {failure}); nothing was "
            "changed; choose another one, or ask whoever wrote it."
        ) from failure
    if what:
        raise StrategyFailed(
            f"The strategy {name!r} chose {what}; nothing was changed; choose another one, or ask "
            "whoever wrote it."
        )
    return replace(choice, experts=experts, notes=notes)


def _complaint(experts: Experts, slots: Sequence[int], num_experts: int) -> str:
    """What is wrong with a choice, or an empty string."""
    if len(experts) != len(slots):
        return f"experts for {len(experts)} layers of {len(slots)}"
    for layer, (chosen, most) in enumerate(zip(experts, slots, strict=True)):
        if len(set(chosen)) != len(chosen):
            return f"an expert of MoE layer number {layer} twice"
        if chosen and not 0 <= chosen[0] <= chosen[-1] < num_experts:
            return f"experts {chosen[0]} to {chosen[-1]} of {num_experts} in a layer"
        if len(chosen) > most:
            return f"{len(chosen)} experts in MoE layer number {layer}, which has {most} slots"
    return ""


def _over(experts: Experts, budget: int) -> str:
    chosen = sum(map(len, experts))
    return f"{chosen} experts for a budget of {budget}" if chosen > budget else ""
