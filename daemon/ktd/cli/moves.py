"""What a plan or a swap moves, for people and for programs."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ktd.cli.tables import table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ktd.cli.terminal import Terminal
    from ktd.client import Move


@dataclass(slots=True)
class _LayerMoves:
    loads: list[int] = field(default_factory=list)
    evicts: list[int] = field(default_factory=list)


def print_moves(terminal: Terminal, moves: Iterable[Move]) -> None:
    """A line per layer: which experts come onto the GPU and which leave."""
    layers: defaultdict[int, _LayerMoves] = defaultdict(_LayerMoves)
    for move in moves:
        if move.HasField("load"):
            layers[move.layer].loads.append(move.load)
        if move.HasField("evict"):
            layers[move.layer].evicts.append(move.evict)
    if not layers:
        return
    rows = [
        (
            str(layer),
            terminal.styled(_ids(of_layer.loads), "green"),
            terminal.styled(_ids(of_layer.evicts), "yellow"),
        )
        for layer, of_layer in sorted(layers.items())
    ]
    table(terminal, ("layer", "to GPU slots", "to the CPU"), rows, "rll")


def moves_json(moves: Iterable[Move]) -> list[dict[str, Any]]:
    """``[{"layer", "load", "evict"}]``; null where nothing enters or leaves."""
    return [
        {
            "layer": move.layer,
            "load": move.load if move.HasField("load") else None,
            "evict": move.evict if move.HasField("evict") else None,
        }
        for move in moves
    ]


def _ids(experts: list[int]) -> str:
    return " ".join(str(expert) for expert in sorted(experts)) or "-"
