"""Long prefills on a GPU: a layer's experts pass through a double buffer at the link's speed.

From some number of tokens on, bringing to the GPU what a layer has in no slot takes less time than
computing it on the CPU. The copies follow a fixed order, layer by layer, and know nothing of the
routing, so those of the next layer run while this one is computed. Experts with a slot are used
there, and a share of the others, the least used, may be the CPU's (prefill_share.py). No slot
changes, and nothing remains in the buffer that a later step relies on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from ktd.cuda.driver import copy_async
from ktd.cuda.streams import new_event, new_stream
from ktd.sgl.expert_layer import ExpertLayer
from ktd.sgl.learnt_layout import LearntLayout
from ktd.sgl.prefill_clock import PrefillClock
from ktd.sgl.prefill_division import PrefillDivision
from ktd.sgl.prefill_share import PrefillShare

_BUFFERS = 2


@dataclass(frozen=True, slots=True)
class Piece:
    """Some of a layer's experts, in one half of the buffer.

    Attributes:
        first: What :meth:`PrefillStream.table` has for the first of them; the others follow.
        count: Of them.
        tensors: ``[C, …]`` by parameter name; the first in row 0. As host memory has them, or laid
            out as slots are.
    """

    first: int
    count: int
    tensors: Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class CpuHelp:
    """The CPU that takes a share of long prefills.

    Attributes:
        spent: Seconds that the pool's calls of many tokens have taken so far.
        row_bytes: Of its answer for one token, which passes over the link too.
        top_k: Experts of a token.
    """

    spent: Callable[[], float]
    row_bytes: int
    top_k: int


@dataclass(slots=True)
class _Half:
    tensors: dict[str, torch.Tensor]
    filled: torch.cuda.Event = field(default_factory=new_event)
    free: torch.cuda.Event = field(default_factory=new_event)


class PrefillStream:
    """One rank's buffer and the stream that fills it.

    All layers have the same shape. A pass begins with :meth:`begin`, then takes the pieces of its
    layers in order.

    Args:
        device: Where.
        threshold: Tokens of prefill from which a step is computed so.
        budget: Bytes of the buffer at most, both halves and what is laid out of one: a layer with
            more comes in pieces.
        division: Between slots, the buffer and the CPU.
        help_: None: the CPU gets no share.
        experts: Of a layer, that a half holds at most; None: all.

    Attributes:
        clock: Measures passes of which the CPU has a share, from the first layer on; or None.
    """

    def __init__(
        self,
        device: torch.device,
        threshold: int,
        budget: int,
        division: PrefillDivision,
        help_: CpuHelp | None = None,
        *,
        experts: int | None = None,
    ) -> None:
        self.threshold = threshold
        self.clock: PrefillClock | None = None
        self._device = device
        self._budget = budget
        self._most = experts
        self._stream = new_stream(device)
        self._halves: list[_Half] = []
        self._layout: LearntLayout | None = None
        self._laid_out: dict[str, torch.Tensor] = {}
        self._layers: list[ExpertLayer] = []
        self._host: list[Mapping[str, torch.Tensor]] = []
        self._positions: list[int] = []
        self._division = division
        self._help = help_
        self._rows = 0
        self._planned: Iterator[tuple[int, int]] = iter(())
        self._ahead: list[tuple[int, Piece, _Half]] = []
        self._turn = 0

    @property
    def num_bytes(self) -> int:
        """Of the buffer; reserved with the first layer."""
        return sum(
            tensor.numel() * tensor.element_size()
            for tensors in (*(half.tensors for half in self._halves), self._laid_out)
            for tensor in tensors.values()
        )

    def add_layer(
        self,
        position: int,
        layer: ExpertLayer,
        host: Mapping[str, torch.Tensor],
        layout: LearntLayout | None = None,
    ) -> int:
        """Adds the next layer of the model.

        Args:
            position: Its index among the MoE layers.
            layer: Its slots.
            host: All its experts, ``[E, …]``, registered, by the names of its slots.
            layout: How they are laid out before they are computed, the same for all layers; None:
                they have the shapes of the slots.

        Returns:
            Its place among those that pass through here.

        Raises:
            RuntimeError: The layout is another one than that of the layers before.
        """
        if layout is not None:
            host = {name: host[name] for name in layout.moves}
        if not self._halves:
            self._reserve(host, layout)
        elif layout is not self._layout:
            raise RuntimeError(f"experts of layer {layer.layer} are laid out otherwise")
        self._layers.append(layer)
        self._host.append(host)
        self._positions.append(position)
        return len(self._layers) - 1

    def table(self, place: int) -> torch.Tensor:
        """As :meth:`PrefillDivision.table` of a layer."""
        return self._division.table(self._positions[place])

    def slots_compute(self, place: int) -> bool:
        """Whether a layer has experts in slots in this pass."""
        return self._division.in_slots(self._positions[place])

    def _reserve(self, host: Mapping[str, torch.Tensor], layout: LearntLayout | None) -> None:
        num_experts = next(iter(host.values())).shape[0]
        expert_bytes = sum(tensor[0].numel() * tensor.element_size() for tensor in host.values())
        slot_bytes = 0 if layout is None else layout.slot_bytes
        fitting = max(1, self._budget // (_BUFFERS * expert_bytes + slot_bytes))
        self._rows = min(num_experts, fitting, self._most or num_experts)
        for _ in range(_BUFFERS):
            tensors = {
                name: torch.empty(
                    (self._rows, *tensor.shape[1:]), dtype=tensor.dtype, device=self._device
                )
                for name, tensor in host.items()
            }
            self._halves.append(_Half(tensors))
        if layout is not None:
            self._layout, self._laid_out = layout, layout.room_for(self._rows, self._device)
        if self._help is not None:
            share = PrefillShare(
                self._help.row_bytes / expert_bytes,
                num_experts=num_experts,
                top_k=self._help.top_k,
            )
            self.clock = PrefillClock(share, self._help.spent, lambda: new_event(timing=True))

    # --- a pass ----------------------------------------------------------------------------

    def begin(self, tokens: int, counters: torch.Tensor) -> None:
        """A pass through all layers is about to be launched on the current stream.

        Args:
            tokens: Of the pass.
            counters: int64 ``[kinds, MoE layers, E, tiers]`` in host memory: how often experts were
                chosen so far.
        """
        if not self._layers:  # every expert of every layer has a slot
            return
        share = None
        if self.clock is not None:
            self.clock.look()
            share = partial(self.clock.share.experts, tokens)
        experts = self._division.divide(self._positions, self._layers, counters, share)
        if self.clock is not None:
            self.clock.begin(tokens, len(self._layers), experts)
        # What an earlier pass left unused has nobody waiting for it.
        self._ahead.clear()
        self._planned = (
            (place, first)
            for place, position in enumerate(self._positions)
            for first in range(0, len(self._division.streamed(position)), self._rows)
        )
        for half in self._halves:
            half.free.record(torch.cuda.current_stream(self._device))
        for _ in range(_BUFFERS):
            self._fill_next()

    def pieces_of(self, place: int) -> int:
        """In how many pieces what a layer has in no slot passes; 0: there is nothing."""
        return -(-len(self._division.streamed(self._positions[place])) // self._rows)

    @contextmanager
    def next_piece(self, place: int) -> Iterator[Piece]:
        """The next piece of a layer, in its body: the current stream computes it there.

        Raises:
            RuntimeError: The pass takes its layers in another order than they were added.
        """
        if not self._ahead or self._ahead[0][0] != place:
            raise RuntimeError(f"layer {self._layers[place].layer} was not expected in a pass")
        current = torch.cuda.current_stream(self._device)
        _, piece, half = self._ahead.pop(0)
        current.wait_event(half.filled)
        if self._layout is None:
            yield piece
            self._fill_again(half, current)
            return
        rows = {name: tensor[: piece.count] for name, tensor in half.tensors.items()}
        room = {name: tensor[: piece.count] for name, tensor in self._laid_out.items()}
        self._layout.lay_out(rows, room)
        self._fill_again(half, current)
        # The stream that computes it lays out the next one, so one place is enough.
        yield replace(piece, tensors=self._laid_out)

    def _fill_again(self, half: _Half, current: torch.cuda.Stream) -> None:
        """Nothing enqueued later reads what is in a half."""
        half.free.record(current)
        self._fill_next()

    def _fill_next(self) -> None:
        planned = next(self._planned, None)
        if planned is None:
            return
        place, first = planned
        half = self._halves[self._turn]
        self._turn = (self._turn + 1) % _BUFFERS
        experts = self._division.streamed(self._positions[place])[first : first + self._rows]
        piece = Piece(self._layers[place].num_slots + first, len(experts), half.tensors)
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(half.free)
            if self.clock is not None:
                self.clock.copying()
            self._copy(self._host[place], experts, half.tensors)
            if self.clock is not None:
                self.clock.copied(len(experts))
            half.filled.record(self._stream)
        self._ahead.append((place, piece, half))

    def _copy(
        self,
        host: Mapping[str, torch.Tensor],
        experts: Sequence[int],
        buffer: Mapping[str, torch.Tensor],
    ) -> None:
        row = 0
        for first, count in runs(experts):
            for name, tensor in buffer.items():
                source = host[name][first : first + count]
                copy_async(
                    tensor[row].data_ptr(),
                    source.data_ptr(),
                    source.numel() * source.element_size(),
                    self._stream.cuda_stream,
                )
            row += count


def runs(experts: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Stretches of experts that lie together in the host store.

    Args:
        experts: Ascending.

    Yields:
        The first, and how many.
    """
    start = 0
    for end in range(1, len(experts) + 1):
        if end == len(experts) or experts[end] != experts[end - 1] + 1:
            yield experts[start], end - start
            start = end
