"""What SGLang's code does to an expert after loading, found out from that code and done without it.

What its Marlin runner reads are an expert's numbers in another order, with padding between them.
SGLang's code makes that of one expert after another, waiting on the host for each; where every
number goes is the same for all of them. So it is found out once: each number is marked with its own
index, bit by bit, and what comes out is read. From then on one kernel lays out as many experts as
are there, and nothing waits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch

from ktd.cuda.rearrangement import FIXED, NIBBLES, Rearrangement, bytes_of, nibbles_of
from ktd.sgl.one_expert import Layout, OneExpert

_NUMBERS = ("_scale", "_bias")  # of fields whose elements are moved whole; others hold nibbles
_MARKS = (3, 5)  # of nibbles: what FP4 and integers of four bits both have
_WIDTHS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
_EXPONENTS = (127, 128)  # of scales in bytes: 1 and 2
_TRIALS = 2


@dataclass(frozen=True, slots=True)
class LearntLayout:
    """Lays out experts as SGLang's code does.

    Attributes:
        layout: What a slot is like.
        moves: By parameter name, for what slots hold.
    """

    layout: Layout
    moves: Mapping[str, Rearrangement]

    @property
    def slot_bytes(self) -> int:
        """Of one expert."""
        return sum(like.numel() * like.element_size() for like in self.layout.slot.values())

    def room_for(self, count: int, device: torch.device) -> dict[str, torch.Tensor]:
        """Memory for so many, ``[count, …]`` by parameter name, with anything in it."""
        return {
            name: torch.empty((count, *like.shape), dtype=like.dtype, device=device)
            for name, like in self.layout.slot.items()
        }

    def lay_out(self, rows: Mapping[str, torch.Tensor], slots: Mapping[str, torch.Tensor]) -> None:
        """Writes experts into slots; on a GPU it is enqueued on the current stream.

        Args:
            rows: ``[C, …]`` by parameter name, as host memory has them.
            slots: ``[C, …]``, each contiguous.
        """
        for name, moves in self.moves.items():
            moves.apply(rows[name], slots[name])


@torch.no_grad()
def learnt(expert: OneExpert) -> LearntLayout | None:
    """Finds out where each number of an expert goes; waits for the device.

    Two experts of random numbers are then laid out both ways.

    Args:
        expert: SGLang's code; what its rows hold is overwritten.

    Returns:
        None: the code does more than to move numbers.
    """
    units = {name: _Units(row, expert.fields[name]) for name, row in expert.rows.items()}
    if not all(units[name].are_of(like) for name, like in expert.layout.slot.items()):
        return None
    made = partial(_made, expert, units)
    low, high = (made({name: u.marked(end) for name, u in units.items()}) for end in (0, 1))
    found = {name: torch.zeros_like(numbers, dtype=torch.int32) for name, numbers in low.items()}
    for bit in range(max(unit.count - 1 for unit in units.values()).bit_length()):
        marked = made({name: unit.indexed(bit) for name, unit in units.items()})
        for name, numbers in marked.items():
            found[name].add_(numbers == units[name].marks[1], alpha=1 << bit)
    moves = {}
    for name, index in found.items():
        moved = low[name] != high[name]
        marks = units[name].marks
        if bool(((low[name] != marks[0]) | (high[name] != marks[1]))[moved].any()):
            return None
        moves[name] = units[name].moves(index.masked_fill_(~moved, FIXED), low[name])
    layout = LearntLayout(expert.layout, moves)
    return layout if all(_agrees(expert, units, layout, seed) for seed in range(_TRIALS)) else None


class _Units:
    """The numbers of one tensor of an expert, in their order: nibbles, or elements.

    Args:
        row: The tensor.
        field: Of ExpertWeights.

    Attributes:
        count: How many.
        marks: Two numbers that stay what they are, by their bits.
    """

    def __init__(self, row: torch.Tensor, field: str) -> None:
        self._row = row
        self._whole = field.endswith(_NUMBERS)
        self._size = row.element_size()
        self._width = _WIDTHS[self._size] if self._whole else torch.uint8
        self._device = row.device
        if not self._whole:
            self.marks = _MARKS
            self.count = 2 * row.numel() * self._size
            return
        self.count = row.numel()
        self.marks = _EXPONENTS
        if row.is_floating_point():
            one, two = torch.tensor([1.0, 2.0], dtype=row.dtype).view(self._width).tolist()
            self.marks = (one, two)

    def are_of(self, tensor: torch.Tensor) -> bool:
        """Whether it can have such numbers, in words of 32 bits."""
        size = tensor.element_size()
        return tensor.numel() * size % 4 == 0 and (not self._whole or size == self._size)

    def marked(self, which: int) -> torch.Tensor:
        """Each number the same mark."""
        return torch.full((self.count,), self.marks[which], dtype=self._width, device=self._device)

    def indexed(self, bit: int) -> torch.Tensor:
        """Each number marked with one bit of its index."""
        index = torch.arange(self.count, dtype=torch.int32, device=self._device)
        low, high = self.marks
        # In place: of a large expert there are a hundred million.
        index.bitwise_right_shift_(bit).bitwise_and_(1).mul_(high - low).add_(low)
        return index.to(self._width)

    def drawn(self, random: torch.Generator) -> torch.Tensor:
        """Nibbles of any value; others as weights have them."""
        if self._row.is_floating_point() and self._whole:
            normal = torch.randn(self.count, generator=random, device="cpu").to(self._row.dtype)
            return normal.view(self._width).to(self._device)
        found = torch.empty(self.count, dtype=torch.uint8, device="cpu")
        least, most = (96, 160) if self._whole else (0, 16)
        return found.random_(least, most, generator=random).to(self._device)

    def write(self, numbers: torch.Tensor) -> None:
        """Makes the tensor hold them."""
        self._row.view(-1).view(torch.uint8).copy_(self._bytes(numbers))

    def read(self, tensor: torch.Tensor) -> torch.Tensor:
        """The numbers of a tensor of such, as they are now."""
        row = tensor.contiguous().view(1, -1)
        return row[0].view(self._width).clone() if self._whole else nibbles_of(row)[0]

    def _bytes(self, numbers: torch.Tensor) -> torch.Tensor:
        if self._whole:
            return numbers.view(torch.uint8)
        return bytes_of(numbers.unsqueeze(0)).view(-1)

    def moves(self, index: torch.Tensor, constant: torch.Tensor) -> Rearrangement:
        """Of numbers by ``index``, int32, or ``constant`` where it is negative."""
        places = index
        if self._whole:
            each = 2 * self._size
            steps = torch.arange(each, dtype=torch.int32, device=self._device)
            places = torch.where(index.unsqueeze(1) < 0, FIXED, index.unsqueeze(1) * each + steps)
        fixed = torch.where(index < 0, constant, 0).to(self._width)
        return Rearrangement(
            places.int().view(-1, NIBBLES).contiguous(), self._bytes(fixed).view(torch.int32)
        )


def _made(
    expert: OneExpert, units: Mapping[str, _Units], numbers: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """What SGLang's code makes of an expert of these numbers, as numbers."""
    for name, unit in units.items():
        unit.write(numbers[name])
    return {name: units[name].read(tensor) for name, tensor in expert.converted().items()}


def _agrees(
    expert: OneExpert, units: Mapping[str, _Units], layout: LearntLayout, seed: int
) -> bool:
    random = torch.Generator(device="cpu").manual_seed(seed)
    for unit in units.values():
        unit.write(unit.drawn(random))
    found = layout.room_for(1, next(iter(expert.rows.values())).device)
    layout.lay_out({name: row.unsqueeze(0) for name, row in expert.rows.items()}, found)
    # Last, for the code may work in place.
    wanted = expert.converted()
    # As bytes: torch compares not every type.
    return all(torch.equal(_bits(found[name][0]), _bits(tensor)) for name, tensor in wanted.items())


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)
