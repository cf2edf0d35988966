"""One hybrid layer's step on a GPU: split, the slots' experts, collect; all of it capturable."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ktd.cuda.layer_channel import DeviceLayer
from ktd.sgl.cuda_side import CudaSide
from ktd.sgl.sglang_slots import SglangSlots


class CudaStep:
    """Computes a layer for the rows of one pass.

    Args:
        side: The rank's.
        layer: On the device.
        slots: Computes its slots; None: it has none.
    """

    def __init__(self, side: CudaSide, layer: DeviceLayer, slots: SglangSlots | None) -> None:
        self._side = side
        self._layer = layer
        self._slots = slots

    def __call__(self, layer: nn.Module, dispatch_output: Any) -> torch.Tensor:
        """bf16 ``[tokens, hidden]``: the slots' sum and, added in float32, the pool's."""
        rows, most = dispatch_output.hidden_states.shape[0], self._side.max_rows
        if rows <= most:
            return self._part(layer, dispatch_output, self._side.num_tokens)
        # Beyond a chunk of prefill there are no graphs, and so no padding.
        return torch.cat(
            [
                self._part(layer, _rows(dispatch_output, slice(start, start + most)), None)
                for start in range(0, rows, most)
            ]
        )

    def _part(
        self, layer: nn.Module, dispatch_output: Any, num_tokens: torch.Tensor | None
    ) -> torch.Tensor:
        channel = self._side.channel
        topk = dispatch_output.topk_output
        hidden = dispatch_output.hidden_states.contiguous()
        weights = topk.topk_weights.float().contiguous()
        capturing = torch.cuda.is_current_stream_capturing()
        slots = channel.split(
            self._layer,
            hidden,
            topk.topk_ids.contiguous(),
            weights,
            num_tokens,
            # Only decoding is captured.
            first_decode_row=0 if capturing else self._side.first_decode_row,
        )
        if self._slots is None:
            out = torch.empty_like(hidden)
            channel.collect(out, num_tokens, add=False)
            return out
        out = self._slots.compute(layer, dispatch_output, slots, weights)
        if self._layer.handle is not None:
            channel.collect(out, num_tokens)
        return out


def _rows(dispatch_output: Any, rows: slice) -> Any:
    topk = dispatch_output.topk_output
    return dispatch_output._replace(
        hidden_states=dispatch_output.hidden_states[rows],
        topk_output=topk._replace(
            topk_ids=topk.topk_ids[rows], topk_weights=topk.topk_weights[rows]
        ),
    )
