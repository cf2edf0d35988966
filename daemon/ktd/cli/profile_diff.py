"""How far two profiles differ, layer by layer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ktd.cli.quantities import share_text
from ktd.cli.tables import table
from ktd.errors import ProfileMismatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ktd.cli.terminal import Terminal
    from ktd.client import Profile


@dataclass(frozen=True, slots=True)
class LayerDifference:
    """One layer; shares are from 0 to 1.

    Attributes:
        moved: Half of the summed differences of the experts' shares: work on other experts.
        shared: How many of the ``experts`` most used ones are the same.
        hit_rate: Share of the second profile's work that the first's most used would compute.
        best_hit_rate: The same for the second's own most used.
    """

    layer: int
    moved: float
    shared: int
    hit_rate: float
    best_hit_rate: float


@dataclass(frozen=True, slots=True)
class Differences:
    """Two profiles; the numbers over all layers are means, as each layer computes every token."""

    first: str
    second: str
    kind: str
    experts: int
    layers: tuple[LayerDifference, ...]

    def mean(self, name: str) -> float:
        """Of an attribute of the layers."""
        values = [getattr(layer, name) for layer in self.layers]
        return sum(values) / len(values) if values else 0.0


def differences(
    first: Profile, second: Profile, *, kind: str = "all", experts: int | None = None
) -> Differences:
    """Compares two profiles of one model shape.

    Args:
        first: With its layers.
        second: With its layers.
        kind: ``all``, ``prefill`` or ``decode``.
        experts: How many of the most used experts of a layer are compared; None: a quarter.

    Raises:
        ProfileMismatch: they are of different shapes.
    """
    shapes = [
        ([layer.layer for layer in profile.layers], profile.num_experts)
        for profile in (first, second)
    ]
    if shapes[0] != shapes[1]:
        raise ProfileMismatch(
            f"{first.name} is of a model with {first.num_moe_layers} MoE layers of "
            f"{first.num_experts} experts, {second.name} of one with {second.num_moe_layers} of "
            f"{second.num_experts}: they cannot be compared."
        )
    most = min(experts or max(1, first.num_experts // 4), first.num_experts)
    layers = tuple(
        _layer(one.layer, _shares(one, kind), _shares(other, kind), most)
        for one, other in zip(first.layers, second.layers, strict=True)
    )
    return Differences(first.name, second.name, kind, most, layers)


def differences_json(found: Differences) -> dict[str, Any]:
    """As JSON."""
    means = {name: found.mean(name) for name in ("moved", "shared", "hit_rate", "best_hit_rate")}
    return {**asdict(found), "mean": means}


def print_differences(terminal: Terminal, found: Differences) -> None:
    """As a table with a line for the whole."""
    rows = [
        (
            str(layer.layer),
            share_text(layer.moved),
            f"{layer.shared}/{found.experts}",
            share_text(layer.hit_rate),
            share_text(layer.best_hit_rate),
        )
        for layer in found.layers
    ]
    rows.append(
        (
            "all",
            share_text(found.mean("moved")),
            f"{found.mean('shared'):.1f}/{found.experts}",
            share_text(found.mean("hit_rate")),
            share_text(found.mean("best_hit_rate")),
        )
    )
    header = (
        *("layer", "on other experts", "most used shared"),
        *(f"{found.first}'s on {found.second}", f"{found.second}'s own"),
    )
    table(terminal, header, rows, "rrrrr")


def _layer(layer: int, one: Sequence[float], other: Sequence[float], most: int) -> LayerDifference:
    tops = [_most_used(shares, most) for shares in (one, other)]
    return LayerDifference(
        layer=layer,
        moved=sum(abs(a - b) for a, b in zip(one, other, strict=True)) / 2,
        shared=len(tops[0] & tops[1]),
        hit_rate=sum(other[expert] for expert in tops[0]),
        best_hit_rate=sum(other[expert] for expert in tops[1]),
    )


def _most_used(shares: Sequence[float], most: int) -> set[int]:
    # The order of `frequency`: higher count, then lower id.
    order = sorted(range(len(shares)), key=lambda expert: (-shares[expert], expert))
    return set(order[:most])


def _shares(layer: Any, kind: str) -> list[float]:
    chosen = {"prefill": list(layer.prefill), "decode": list(layer.decode)}
    chosen["all"] = list(map(sum, zip(*chosen.values(), strict=True)))
    total = sum(chosen[kind])
    return [count / total if total else 0.0 for count in chosen[kind]]
