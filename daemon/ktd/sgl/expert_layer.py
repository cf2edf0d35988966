"""One MoE layer of one rank: the complete host copy, the slots, and the table between them.

The table is the only thing that says where a (token, expert) pair is computed (invariant 3). It
changes only through :meth:`ExpertLayer.unmap` and :meth:`ExpertLayer.publish`, which the scheduler
calls between two steps. A slot that is being written is in neither direction of the mapping.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import numpy as np
import torch

from ktd.sgl.copy_lane import CopyLane
from ktd.sgl.slot_source import Copies, Places, SlotPart, SlotSource, bytes_of_one

EMPTY = -1


class MoveRefused(Exception):  # reads as what happened; it never reaches a user as is
    """A move contradicts the slots as they are; the sentence names layer, expert and slot."""


@dataclass(frozen=True, slots=True)
class SlotCopy:
    """One expert on its way into one slot."""

    layer: int
    expert: int
    slot: int
    source: SlotSource
    slots: Mapping[str, torch.Tensor]
    places: tuple[Places, ...] | None = None

    @property
    def parts(self) -> tuple[SlotPart, ...]:
        """Made by whoever copies, not by the scheduler."""
        tensors = {name: tensor[self.slot] for name, tensor in self.slots.items()}
        return self.source.parts(self.expert, tensors)

    @property
    def num_bytes(self) -> int:
        """Bytes that are written."""
        return sum(part.units * part.unit_bytes for part in self.parts)

    def run(self, lane: CopyLane) -> None:
        """Fills the slot; on a GPU, on the current stream."""
        for part in self.parts:
            lane.put(part, 0, part.units)


def plain_copies(copies: Sequence[SlotCopy]) -> tuple[Copies, Sequence[SlotCopy]]:
    """Those that are plain copies, as such, and the others.

    A batch has thousands, and whoever makes them shares the interpreter with the scheduler: what
    lies in one layer is computed together. An expert's tensors follow each other: a row of nothing
    but scales of some hundred bytes would leave the link idle.
    """
    plain: list[Copies] = [np.empty((0, 3), np.int64)]
    others: list[SlotCopy] = []
    for places, group in itertools.groupby(copies, key=attrgetter("places")):
        of_layer = list(group)
        if places is None:
            others += of_layer
            continue
        experts = np.array([copy.expert for copy in of_layer], np.int64)
        slots = np.array([copy.slot for copy in of_layer], np.int64)
        rows = np.empty((len(of_layer), len(places), 3), np.int64)
        for number, at in enumerate(places):
            rows[:, number, 0] = at.to + slots * at.to_pitch
            rows[:, number, 1] = at.source + experts * at.source_pitch
            rows[:, number, 2] = at.size
        plain.append(rows.reshape(-1, 3))
    return np.concatenate(plain), others


@dataclass(slots=True)
class ExpertLayer:
    """Host store, slots and table of one layer.

    Attributes:
        layer: Index of the layer in the model.
        num_experts: Experts of the layer, E.
        num_slots: Slots of the layer, S.
        store: All experts in host memory.
        slots: Slot tensors by parameter name, ``[S, …]``, in SGLang's own method's layout.
        table: int32 ``[E]`` in host memory: slot of each expert, or -1. A GPU splits by a copy that
            follows through :meth:`take_changes`.
    """

    layer: int
    num_experts: int
    num_slots: int
    store: SlotSource
    slots: dict[str, torch.Tensor]
    table: torch.Tensor
    _occupants: list[int] = field(init=False)
    _slot_of: dict[int, int] = field(init=False, default_factory=dict)
    _writing: dict[int, int] = field(init=False, default_factory=dict)
    _changed: dict[int, int] = field(init=False, default_factory=dict)
    _entries: Any = field(init=False)
    _places: tuple[Places, ...] | None = field(init=False)

    def __post_init__(self) -> None:
        self._occupants = [EMPTY] * self.num_slots
        self._entries = self.table.numpy()  # the same memory; torch takes microseconds an entry
        # Here, for a batch has hundreds of experts, and asking tensors takes microseconds each.
        self._places = self.store.places(self.slots)

    @property
    def expert_bytes(self) -> int:
        """Bytes of one expert of this rank's shard in a slot."""
        return bytes_of_one(self.slots)

    @property
    def host_expert_bytes(self) -> int:
        """Bytes of one in host memory."""
        return self.store.expert_bytes

    def mapped(self) -> list[int]:
        """Mapped expert of each slot, or -1."""
        return list(self._occupants)

    def is_mapped(self, expert: int) -> bool:
        """Whether a slot computes this expert."""
        return expert in self._slot_of

    def check(self, evict: int, load: int) -> None:
        """Raises :class:`MoveRefused` when a move does not go with the mapping as it is."""
        where = f"layer {self.layer}"
        for expert in (evict, load):
            if not EMPTY <= expert < self.num_experts:
                raise MoveRefused(f"{where} has experts 0..{self.num_experts - 1}, not {expert}")
        if evict != EMPTY and evict not in self._slot_of:
            raise MoveRefused(f"expert {evict} of {where} is not in a slot")
        if load != EMPTY and (load in self._slot_of or load in self._writing):
            raise MoveRefused(f"expert {load} of {where} is in a slot already")

    def unmap(self, expert: int) -> int:
        """Gives the expert to the CPU from the next step on; returns the slot that became free."""
        slot = self._slot_of.pop(expert)
        self._map(expert, EMPTY)
        self._occupants[slot] = EMPTY
        return slot

    def restore(self, expert: int, slot: int) -> None:
        """Takes back an :meth:`unmap` whose slot nobody has written."""
        self._occupants[slot] = expert
        self._slot_of[expert] = slot
        self._map(expert, slot)

    def take_changes(self) -> dict[int, int]:
        """The slot, or -1, of each expert whose entry changed since the last call."""
        changed, self._changed = self._changed, {}
        return changed

    def _map(self, expert: int, slot: int) -> None:
        self._entries[expert] = slot
        self._changed[expert] = slot

    def reserve(self, expert: int, slot: int | None = None) -> SlotCopy:
        """Takes a free slot, the lowest by default, for an expert that will be copied into it."""
        if slot is None:
            taken = set(self._writing.values())
            free = (
                s
                for s, occupant in enumerate(self._occupants)
                if occupant == EMPTY and s not in taken
            )
            slot = next(free, None)
            if slot is None:
                raise MoveRefused(f"layer {self.layer} has no free slot for expert {expert}")
        self._writing[expert] = slot
        return SlotCopy(self.layer, expert, slot, self.store, self.slots, self._places)

    def publish(self, expert: int) -> None:
        """Maps an expert whose copy has finished."""
        self.restore(expert, self._writing.pop(expert))

    def release(self, expert: int) -> None:
        """Leaves the slot of an expert that was being written empty."""
        self._writing.pop(expert, None)
