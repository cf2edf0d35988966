"""One hybrid layer's step on a GPU: split, the slots' experts, collect; all of it capturable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from ktd.cuda.layer_channel import DeviceLayer
from ktd.sgl.absent_ids import Trials
from ktd.sgl.cuda_side import CudaSide
from ktd.sgl.dispatch_rows import some_rows
from ktd.sgl.prefill_stream import Piece, PrefillStream
from ktd.sgl.sglang_slots import SglangSlots


class CudaStep:
    """Computes a layer for the rows of one pass.

    Args:
        side: The rank's.
        position: The layer's index among the MoE layers.
        layer: On the device.
        slots: Computes its slots.
        has_slots: Whether there is any.
        whole: Slot i holds expert i, for every expert and for good: SGLang's ids are slots already.
        streamed: How it passes through the rank's prefill stream; None: it does not.
        trials: What is to be tried before its first steps; None: nothing.
    """

    def __init__(
        self,
        side: CudaSide,
        position: int,
        layer: DeviceLayer,
        slots: SglangSlots,
        *,
        has_slots: bool,
        whole: bool = False,
        streamed: StreamedLayer | None = None,
        trials: Trials | None = None,
    ) -> None:
        self._side = side
        self._position = position
        self._layer = layer
        self._layer_in_parts = replace(layer, seen=None, deferred=0)
        self._slots = slots
        self._has_slots = has_slots
        self._whole = whole
        self._streamed = streamed
        self._trials = trials

    def __call__(self, layer: nn.Module, dispatch_output: Any) -> torch.Tensor:
        """bf16 ``[tokens, hidden]``: the slots' sum and, added in float32, the pool's."""
        trials = self._trials
        if trials is not None and trials.slots and not torch.cuda.is_current_stream_capturing():
            trials.try_slots(partial(self._slots.compute, layer), dispatch_output)
        if self._side.streaming and self._streamed is not None:
            return self._stream(layer, dispatch_output, self._streamed)
        rows, most = dispatch_output.hidden_states.shape[0], self._side.max_rows
        if rows <= most:
            return self._part(layer, dispatch_output, self._layer, self._side.num_tokens)
        self._side.saw(self._position, dispatch_output.topk_output.topk_ids)
        # Beyond a chunk of prefill there are no graphs, and so no padding.
        return torch.cat(
            [
                self._part(
                    layer,
                    some_rows(dispatch_output, slice(start, start + most)),
                    self._layer_in_parts,
                    None,
                    start,
                )
                for start in range(0, rows, most)
            ]
        )

    def _part(
        self,
        layer: nn.Module,
        dispatch_output: Any,
        device: DeviceLayer,
        num_tokens: torch.Tensor | None,
        start: int = 0,
    ) -> torch.Tensor:
        channel = self._side.channel
        if self._whole:
            # Nothing depends on the split, which only counts here: it runs beside the experts.
            with self._side.beside():
                self._split(device, dispatch_output, num_tokens, start)
            topk = dispatch_output.topk_output
            out = self._slots.compute(layer, dispatch_output, topk.topk_ids, topk.topk_weights)
            self._side.join()
            return out
        slots, weights = self._split(device, dispatch_output, num_tokens, start)
        if not self._has_slots:
            out = torch.empty_like(dispatch_output.hidden_states)
            channel.collect(out, num_tokens, add=False)
            return out
        out = self._slots.compute(layer, dispatch_output, slots, weights)
        if device.handle is not None:
            channel.collect(out, num_tokens)
        return out

    def _split(
        self,
        layer: DeviceLayer,
        dispatch_output: Any,
        num_tokens: torch.Tensor | None,
        start: int = 0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        topk = dispatch_output.topk_output
        weights = topk.topk_weights.float().contiguous()
        # Only decoding is captured.
        captured = torch.cuda.is_current_stream_capturing()
        slots = self._side.channel.split(
            layer,
            dispatch_output.hidden_states.contiguous(),
            topk.topk_ids.contiguous(),
            weights,
            num_tokens,
            first_decode_row=0 if captured else max(0, self._side.first_decode_row - start),
            # Nothing of a step that reads a prompt is late, nor of what decodes beside it.
            defer=captured or self._side.decoding,
        )
        return slots, weights

    def _stream(
        self, layer: nn.Module, dispatch_output: Any, streamed: StreamedLayer
    ) -> torch.Tensor:
        ids, weights = self._split(streamed.device, dispatch_output, None)
        clock = streamed.stream.clock
        if clock is not None:
            clock.published()
        total: torch.Tensor | None = None
        for part in self._parts_of_stream(layer, dispatch_output, streamed, ids, weights):
            total = part if total is None else total.float().add_(part)
        hidden_states = dispatch_output.hidden_states
        out = torch.empty_like(hidden_states) if total is None else total.to(hidden_states.dtype)
        self._side.channel.collect(
            out, add=total is not None, answered=None if clock is None else clock.answered()
        )
        return out

    def _parts_of_stream(
        self,
        layer: nn.Module,
        dispatch_output: Any,
        streamed: StreamedLayer,
        ids: torch.Tensor,
        weights: torch.Tensor,
    ) -> Iterator[torch.Tensor]:
        """bf16 ``[tokens, hidden]`` of the slots, which wait for no copy, and of each piece."""
        stream, place = streamed.stream, streamed.place
        if stream.slots_compute(place):
            slots = torch.where(ids < streamed.num_slots, ids, -1)
            yield self._slots.compute(layer, dispatch_output, slots, weights)
        for _ in range(stream.pieces_of(place)):
            with stream.next_piece(place) as piece:
                yield self._piece(layer, dispatch_output, piece, _within(ids, piece), weights)

    def _piece(
        self,
        layer: nn.Module,
        dispatch_output: Any,
        piece: Piece,
        rows: torch.Tensor,
        weights: torch.Tensor,
    ) -> torch.Tensor:
        view = WithParameters(layer, self._slots.parameters(piece.tensors))
        if self._trials is not None and self._trials.pieces:
            compute = partial(self._slots.compute, view)
            self._trials.try_piece(compute, dispatch_output, piece.count)
        return self._slots.compute(view, dispatch_output, rows, weights)


@dataclass(frozen=True, slots=True)
class StreamedLayer:
    """A layer that long prefills compute out of the rank's stream.

    Attributes:
        stream: The rank's.
        place: The layer's in it.
        num_slots: Of it: ids below are slots, and those from it on come through the stream.
        device: Its tables for such steps.
    """

    stream: PrefillStream
    place: int
    num_slots: int
    device: DeviceLayer


class WithParameters:
    """SGLang's layer with something else in place of its parameters and other attributes."""

    def __init__(self, layer: nn.Module, instead: Mapping[str, Any]) -> None:
        self.__dict__.update(instead)
        self.__dict__["_layer"] = layer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_layer"], name)


def _within(ids: torch.Tensor, piece: Piece) -> torch.Tensor:
    """Ids as rows of a piece, -1 for those that are not in it."""
    rows = ids - piece.first
    return torch.where((rows >= 0) & (rows < piece.count), rows, -1)
