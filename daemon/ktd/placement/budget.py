"""How the budget flags become a number of GPU slots over all layers."""

from __future__ import annotations

from dataclasses import dataclass

from ktd.errors import ConfigError

# A stand-in for "as much as fits" until free device memory is asked for.
_AUTO_RATIO = 0.25


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
) -> Budget:
    """KTransformers' rule: ``int(layers * experts * ratio)``, else ``per_layer * layers``.

    Args:
        num_layers: Number of MoE layers.
        num_experts: Routed experts per MoE layer.
        ratio: ``--gpu-experts-ratio``, or None if it was not given; wins over ``per_layer``.
        per_layer: ``--num-gpu-experts``, or None. With neither a quarter is taken (``auto``).

    Raises:
        ConfigError: the ratio is outside 0 to 1, or ``per_layer`` is negative.
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
    slots = int(total * _AUTO_RATIO)
    note = f"No budget was given: a quarter of the {total} experts, {slots}, get GPU slots."
    return Budget(slots, (note,))
