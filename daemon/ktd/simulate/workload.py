"""A recorded workload: phases of routing, and the chunks of tokens in which it is replayed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ktd.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

MIXED = "mixed"
_TURN = 500


@dataclass(frozen=True, slots=True, eq=False)
class Phase:
    """A stretch of the workload.

    Attributes:
        name: For people.
        ids: int16 ``[tokens, layers, top_k]``, -1 for none.
        decode: bool ``[tokens]``; None where the recording does not say.
    """

    name: str
    ids: NDArray[np.int16]
    decode: NDArray[np.bool_] | None = None

    @property
    def tokens(self) -> int:
        """How many tokens it has."""
        return len(self.ids)


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Tokens that follow each other: ``counts`` ``[layers, experts]``.

    Attributes:
        phase: Its number.
        prefill: Whether they are of a prompt; None where the recording does not say.
        last: Whether a decision follows: the chunk is whole.
    """

    phase: int
    counts: NDArray[np.int64]
    tokens: int
    prefill: bool | None
    last: bool


@dataclass(frozen=True, slots=True, eq=False)
class Workload:
    """Phases of one model, replayed one after the other."""

    phases: tuple[Phase, ...]
    num_experts: int

    def __post_init__(self) -> None:
        """Checks that the phases are of that model."""
        highest = max((int(phase.ids.max(initial=-1)) for phase in self.phases), default=-1)
        if highest >= self.num_experts:
            raise ConfigError(
                f"The trace has an expert {highest}, but --experts says that a layer has "
                f"{self.num_experts}."
            )
        if not any(phase.tokens for phase in self.phases):
            raise ConfigError("The trace holds no tokens; record some requests first.")

    @property
    def num_layers(self) -> int:
        """MoE layers."""
        return int(self.phases[0].ids.shape[1])

    @property
    def tokens(self) -> int:
        """Of all phases."""
        return sum(phase.tokens for phase in self.phases)

    def counts(self, phase: int) -> NDArray[np.int64]:
        """Pairs ``[layers, experts]`` of a whole phase."""
        return count(self.phases[phase].ids, self.num_experts)

    def chunks(self, size: int) -> Iterator[Chunk]:
        """The tokens in chunks of ``size``, counted on over the borders of phases.

        A chunk that crosses a border comes in two pieces, of which the second is ``last``. Where
        the recording tells prefill from decode, a chunk also ends where one follows the other.
        """
        room = size
        for number, phase in enumerate(self.phases):
            edges = _edges(phase)
            begin = 0
            while begin < phase.tokens:
                edge = int(edges[np.searchsorted(edges, begin, side="right")])
                end = min(begin + room, edge)
                room -= end - begin
                turns = end == edge and phase.decode is not None
                yield Chunk(
                    phase=number,
                    counts=count(phase.ids[begin:end], self.num_experts),
                    tokens=end - begin,
                    prefill=None if phase.decode is None else not bool(phase.decode[begin]),
                    last=not room or turns,
                )
                if not room or turns:
                    room = size
                begin = end


def count(ids: NDArray[np.int16], num_experts: int) -> NDArray[np.int64]:
    """Pairs ``[layers, experts]`` in ``ids`` ``[tokens, layers, top_k]``."""
    layers = ids.shape[1]
    # One column more for -1.
    width = num_experts + 1
    flat = ids.astype(np.int64) + 1 + width * np.arange(layers)[None, :, None]
    counts = np.bincount(flat.ravel(), minlength=layers * width).reshape(layers, width)
    return np.ascontiguousarray(counts[:, 1:])


def with_mixed(phases: Sequence[Phase]) -> tuple[Phase, ...]:
    """The phases, and after them one that takes 500 tokens of each in turn from their beginnings.

    It has as many tokens as the longest of them, or as there are; one phase alone stays alone.
    """
    if len(phases) < 2:  # noqa: PLR2004  # there is nothing to take turns with
        return tuple(phases)
    wanted = max(phase.tokens for phase in phases)
    pieces: list[NDArray[np.int16]] = []
    taken = begin = 0
    while taken < wanted and any(phase.tokens > begin for phase in phases):
        for phase in phases:
            piece = phase.ids[begin : begin + _TURN][: wanted - taken]
            pieces.append(piece)
            taken += len(piece)
        begin += _TURN
    return (*phases, Phase(MIXED, np.concatenate(pieces)))


def _edges(phase: Phase) -> NDArray[np.int64]:
    """Where stretches of one kind end; the phase's end is the last."""
    ends = np.array([phase.tokens], np.int64)
    if phase.decode is None:
        return ends
    turns = np.flatnonzero(phase.decode[1:] != phase.decode[:-1]) + 1
    return np.concatenate([turns, ends])
