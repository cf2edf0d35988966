"""Fills slots whose layout is not the host's: an expert passes through a scratch expert on the way.

Its host rows are copied into the scratch expert as they are, and laid out from there in the slot,
whose memory stays where graphs know it to be: as SGLang's own code does it, or by that code where
it does more than to move numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ktd.cuda.streams import new_stream
from ktd.sgl.learnt_layout import LearntLayout, learnt
from ktd.sgl.one_expert import OneExpert
from ktd.sgl.slot_source import SlotPart, SlotSource

logger = logging.getLogger(__name__)


class ScratchExpert:
    """Memory for one expert on its way, for all layers of a rank whose experts look the same.

    On a GPU SGLang's code has a stream of its own, which waits for the stream that brought the rows
    and which that one waits for: memory that the code asks for on the way is there from the start
    on, and if it waits for its stream, it waits for one expert and for no step. One thread at a
    time uses it.

    Attributes:
        expert: The memory, and SGLang's code.
        layout: What that code does; None: more than to move numbers.
    """

    def __init__(self, expert: OneExpert) -> None:
        self.expert = expert
        self.layout = _learnt(expert)
        self._device = next(iter(expert.rows.values())).device
        own = self.layout is None and self._device.type == "cuda"
        self._stream = new_stream(self._device) if own else None
        if self._stream is not None:
            # Kernels are compiled and memory is reserved before the engine serves.
            torch.cuda.synchronize(self._device)
            with torch.cuda.stream(self._stream):
                expert.converted()
            self._stream.synchronize()

    @property
    def rows(self) -> Mapping[str, torch.Tensor]:
        """Where the host rows of an expert go, by parameter name."""
        return self.expert.rows

    def move_into(self, slot: Mapping[str, torch.Tensor]) -> None:
        """Puts the expert whose rows are in :attr:`rows` into a slot.

        On a GPU what follows on the current stream comes behind it.
        """
        if self.layout is not None:
            self.layout.lay_out(_one(self.rows), _one(slot))
            return
        if self._stream is None:
            self._move(slot)
            return
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            self._move(slot)
        current.wait_stream(self._stream)

    def _move(self, slot: Mapping[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in self.expert.converted().items():
                slot[name].copy_(tensor)


def _learnt(expert: OneExpert) -> LearntLayout | None:
    reason = "its code does more than to move numbers"
    try:
        layout = learnt(expert)
    except RuntimeError as error:  # torch's: no memory for it, for one
        layout, reason = None, str(error)
    if layout is None:
        logger.warning(
            "what SGLang does to experts after loading was not found out (%s), so its own code "
            "lays them out, one by one, and long prefills do not stream",
            reason,
        )
    return layout


def _one(expert: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.unsqueeze(0) for name, tensor in expert.items()}


@dataclass(frozen=True, slots=True)
class LastPart:
    """The last part of an expert's rows: with its end the expert moves into its slot."""

    part: SlotPart
    scratch: ScratchExpert
    slot: Mapping[str, torch.Tensor]

    @property
    def units(self) -> int:
        """Of the part."""
        return self.part.units

    @property
    def unit_bytes(self) -> int:
        """Of the part."""
        return self.part.unit_bytes

    def target(self, start: int, count: int) -> torch.Tensor:
        """Of the part, in the scratch expert."""
        return self.part.target(start, count)

    def as_is(self, start: int, count: int) -> torch.Tensor | None:
        """Of the part."""
        return self.part.as_is(start, count)

    def into(self, start: int, count: int, out: torch.Tensor) -> None:
        """As the part."""
        self.part.into(start, count, out)

    def landed(self, end: int) -> None:
        """Repacks behind the last unit: parts of one expert are written in order, units too."""
        self.part.landed(end)
        if end == self.part.units:
            self.scratch.move_into(self.slot)


@dataclass(frozen=True, slots=True)
class RepackedSource:
    """Slots hold what SGLang makes of host rows; see :class:`ktd.sgl.slot_source.SlotSource`.

    Attributes:
        rows: Fills the scratch expert.
        scratch: Repacks.
    """

    rows: SlotSource
    scratch: ScratchExpert

    @property
    def expert_bytes(self) -> int:
        """Of the host rows."""
        return self.rows.expert_bytes

    def parts(self, expert: int, slot: Mapping[str, torch.Tensor]) -> tuple[SlotPart, ...]:
        """The parts of the rows, the last of which repacks."""
        *parts, last = self.rows.parts(expert, self.scratch.rows)
        return (*parts, LastPart(last, self.scratch, slot))

    def places(self, slots: Mapping[str, torch.Tensor]) -> None:
        """The bytes of the slot are nowhere yet."""
