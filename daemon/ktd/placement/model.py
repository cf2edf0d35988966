"""Immutable values: what a model offers, which experts are in GPU slots, and what to move."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import NamedTuple, TypeAlias, overload

# Per MoE layer, in the order of ``ModelShape.moe_layers``: ascending ids of experts in slots.
Experts: TypeAlias = tuple[tuple[int, ...], ...]
# ``Placement.origin`` of what a policy did is this and the policy's name.
POLICY_ORIGIN = "policy:"
_NOBODY = -1


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What is fixed while an engine runs.

    Attributes:
        moe_layers: Model layer indices that have experts, ascending.
        num_experts: Routed experts per MoE layer.
        slots: Slots per MoE layer, in the order of ``moe_layers``.
        expert_bytes: Weight bytes of one whole expert, over all ranks.
        full_stays_full: A layer with a slot for every expert has no CPU path and cannot give one
            up, as on a GPU, where graphs are made without it.
    """

    moe_layers: tuple[int, ...]
    num_experts: int
    slots: tuple[int, ...]
    expert_bytes: int
    full_stays_full: bool = False

    def __post_init__(self) -> None:
        if len(self.slots) != len(self.moe_layers):
            raise ValueError(f"{len(self.slots)} slot counts for {len(self.moe_layers)} MoE layers")
        if list(self.moe_layers) != sorted(set(self.moe_layers)):
            raise ValueError("MoE layers must be ascending")
        if any(not 0 <= slots <= self.num_experts for slots in self.slots):
            raise ValueError(f"slot counts must lie between 0 and {self.num_experts}")

    @property
    def total_slots(self) -> int:
        """Slots over all layers."""
        return sum(self.slots)

    def fits(self, experts: Experts) -> bool:
        """Whether ``experts`` is a placement of this shape."""
        return len(experts) == len(self.slots) and all(
            len(chosen) <= slots
            and list(chosen) == sorted(set(chosen))
            and all(0 <= expert < self.num_experts for expert in chosen)
            for chosen, slots in zip(experts, self.slots, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Placement:
    """Which experts are in slots, committed.

    Attributes:
        revision: Grows by one with every committed change; for ordering and display.
        etag: Opaque and quoted; required to apply a target against this placement.
        origin: A strategy's name, ``"explicit"``, ``"undo"``, ``"start"``, ``"restored"``, or
            ``"policy:"`` with a policy's name.
        update_time: Unix seconds.
    """

    shape: ModelShape
    experts: Experts
    revision: int
    etag: str
    origin: str
    update_time: float


class Move(NamedTuple):
    """One change of one slot of model layer ``layer``.

    ``evict`` leaves its slot (None: a free slot is filled); ``load`` enters it (None: the slot is
    only emptied). A tuple, as a plan of a large model makes ten thousand at once.
    """

    layer: int
    evict: int | None
    load: int | None

    def reversed(self) -> Move:
        """The move that takes this one back after it was published."""
        return Move(self.layer, evict=self.load, load=self.evict)


class PackedMoves(Sequence[Move]):
    """Moves that are kept to be looked at, as numbers.

    Fifty swaps of ten thousand moves, as objects, take a collection of garbage 50 to 100 ms to go
    through, in which the daemon relays no token.
    """

    __slots__ = ("_numbers",)

    def __init__(self, moves: Iterable[Move]) -> None:
        self._numbers = array(
            "i", [_NOBODY if one is None else one for move in moves for one in move]
        )

    def __len__(self) -> int:
        return len(self._numbers) // 3

    def __iter__(self) -> Iterator[Move]:
        numbers = iter(self._numbers)
        for layer, evict, load in zip(numbers, numbers, numbers, strict=True):
            yield Move(layer, _expert(evict), _expert(load))

    @overload
    def __getitem__(self, at: int) -> Move: ...

    @overload
    def __getitem__(self, at: slice) -> tuple[Move, ...]: ...

    def __getitem__(self, at: int | slice) -> Move | tuple[Move, ...]:
        if isinstance(at, slice):
            return tuple(self[one] for one in range(*at.indices(len(self))))
        first = 3 * range(len(self))[at]
        layer, evict, load = self._numbers[first : first + 3]
        return Move(layer, _expert(evict), _expert(load))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]  # as of a list


def _expert(number: int) -> int | None:
    return None if number == _NOBODY else number


def diff(shape: ModelShape, old: Experts, new: Experts) -> tuple[Move, ...]:
    """The moves from ``old`` to ``new``; evictions are paired with loads inside a layer.

    As both fit into the layer's slots, a layer has either loads into free slots or evictions
    without a load left over, never both.
    """
    moves: list[Move] = []
    for layer, before, after in zip(shape.moe_layers, old, new, strict=True):
        if before == after:
            continue
        leaving = sorted(set(before).difference(after))
        entering = sorted(set(after).difference(before))
        moves.extend(Move(layer, evict, load) for evict, load in zip_longest(leaving, entering))
    return tuple(moves)


def bytes_of(shape: ModelShape, moves: Iterable[Move]) -> int:
    """Bytes that ``moves`` copy into slots, over all ranks."""
    return shape.expert_bytes * sum(move.load is not None for move in moves)
