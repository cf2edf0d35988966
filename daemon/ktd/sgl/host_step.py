"""One hybrid layer's step on a host without a GPU: the pool, then the slots."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ktd.sgl.expert_layer import ExpertLayer
from ktd.sgl.rank import Rank
from ktd.sgl.slots import Slots


class HostStep:
    """Computes a layer for the rows of one pass.

    Args:
        rank: This process's state.
        position: Index of the layer among the MoE layers.
        experts: The layer.
        handle: The pool's.
        slots: Computes its slots.
    """

    def __init__(
        self, rank: Rank, position: int, experts: ExpertLayer, handle: int, slots: Slots
    ) -> None:
        self._rank = rank
        self._position = position
        self._table = experts.table
        self._handle = handle
        self._slots = slots

    def __call__(self, layer: nn.Module, dispatch_output: Any) -> torch.Tensor:
        """``[tokens, hidden]``: the pool's float32 sum plus the slots' share."""
        hidden = dispatch_output.hidden_states
        topk = dispatch_output.topk_output
        ids, weights = topk.topk_ids, topk.topk_weights.float().contiguous()
        routed = self._rank.route(self._position, ids.contiguous(), self._table)
        if routed.on_cpu:
            out = self._rank.pool.forward(
                self._handle, hidden.contiguous(), routed.cpu_ids, weights
            )
        else:
            out = torch.zeros(hidden.shape, dtype=torch.float32)
        if routed.in_slots:
            self._slots.add(layer, dispatch_output, routed.slots, weights, out)
        return out.to(hidden.dtype)
