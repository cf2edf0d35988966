"""Which experts the ranks have mapped, as far as the daemon was told."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ktd.placement.model import Experts, ModelShape, Move


class Residency:
    """Follows a swap move by move.

    Equal to the committed placement except while a swap runs, and after one that could not be
    rolled back: then experts are missing here, and the next target is compared with this.
    """

    def __init__(self, shape: ModelShape, experts: Experts) -> None:
        self._layers = {
            layer: set(chosen) for layer, chosen in zip(shape.moe_layers, experts, strict=True)
        }
        # Of layers that have not changed since: a swap changes few of them, and is asked often.
        self._rows = dict(zip(shape.moe_layers, experts, strict=True))

    def unmapped(self, moves: Iterable[Move]) -> None:
        """The victims of ``moves`` have left their slots."""
        for move in moves:
            if move.evict is not None:
                self._layers[move.layer].discard(move.evict)
                self._rows.pop(move.layer, None)

    def published(self, moves: Iterable[Move]) -> None:
        """The experts that ``moves`` load are in their slots."""
        for move in moves:
            if move.load is not None:
                self._layers[move.layer].add(move.load)
                self._rows.pop(move.layer, None)

    @property
    def experts(self) -> Experts:
        """What is mapped now."""
        for layer, chosen in self._layers.items():
            if layer not in self._rows:
                self._rows[layer] = tuple(sorted(chosen))
        return tuple(self._rows[layer] for layer in self._layers)
