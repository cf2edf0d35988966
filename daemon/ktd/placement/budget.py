"""How the budget flags become a number of GPU slots over all layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ktd.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable


# Value of ``--live-slots``: every layer the same number of slots, whatever the strategy would like.
EVEN = "even"


@dataclass(frozen=True, slots=True)
class Budget:
    """Slots over all layers, and sentences for the log."""

    slots: int
    notes: tuple[str, ...] = ()


def budget_of(
    num_layers: int,
    num_experts: int,
    *,
    ratio: float | None = None,
    per_layer: int | None = None,
    auto: Callable[[], Budget] | None = None,
) -> Budget:
    """KTransformers' rule: ``int(layers * experts * ratio)``, else ``per_layer * layers``.

    Args:
        num_layers: Number of MoE layers.
        num_experts: Routed experts per MoE layer.
        ratio: ``--gpu-experts-ratio``, or None if it was not given; wins over ``per_layer``.
        per_layer: ``--num-gpu-experts``, or None.
        auto: Asked when there is neither: how much memory allows. KTransformers then runs without
            GPU experts' flags at all, which is to say without its own method.

    Raises:
        ConfigError: the ratio is outside 0 to 1, ``per_layer`` is negative, or there is nothing.
    """
    total = num_layers * num_experts
    if ratio is not None:
        # Written so that NaN is refused too.
        if not 0.0 <= ratio <= 1.0:
            raise ConfigError(
                f"--gpu-experts-ratio is {ratio:g}, but must lie between 0 and 1, "
                "for example 0.25 for a quarter of the experts."
            )
        notes: tuple[str, ...] = ()
        if per_layer is not None:
            ignored = f"--num-gpu-experts {per_layer} is ignored"
            notes = (f"{ignored}, as --gpu-experts-ratio {ratio:g} was given too.",)
        return Budget(int(total * ratio), notes)
    if per_layer is not None:
        if per_layer < 0:
            raise ConfigError(f"--num-gpu-experts is {per_layer}, but must be 0 or more.")
        if per_layer > num_experts:
            note = (
                f"--num-gpu-experts {per_layer} was lowered to {num_experts}, "
                "the experts of a layer."
            )
            return Budget(total, (note,))
        return Budget(per_layer * num_layers)
    if auto is None:
        raise ConfigError("No budget was given: --gpu-experts-ratio or --num-gpu-experts.")
    return auto()


def even_slots(
    num_layers: int, num_experts: int, budget: int
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The same number of slots for every layer, and sentences for the log."""
    each = min(num_experts, budget // num_layers) if num_layers else 0
    rest = min(budget, num_layers * num_experts) - each * num_layers
    note = (
        f"--live-slots even gives each of {num_layers} layers {each} slots; {rest} of the budget "
        "are left over."
    )
    return (each,) * num_layers, ((note,) if rest else ())
