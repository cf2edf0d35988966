"""Slots that SGLang's own method for the format computes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ktd.sgl.expert_loader import ExpertLoader


class SglangSlots:
    """S experts as SGLang's method keeps them; see :class:`ktd.sgl.slots.Slots`.

    Args:
        method: SGLang's method.
        layer: Gets the parameters.
        loader: The layer's; the parameters carry it.
        num_slots: S.
        attributes: What else SGLang's layer gave to ``create_weights``.
    """

    def __init__(
        self,
        method: Any,
        layer: nn.Module,
        loader: ExpertLoader,
        num_slots: int,
        attributes: Mapping[str, Any],
    ) -> None:
        self._method = method
        self._num_slots = num_slots
        self._names = tuple(loader.template)
        method.create_weights(
            layer=layer, num_experts=num_slots, weight_loader=loader, **attributes
        )
        for name in self._names:
            loader.attach(name, getattr(layer, name))

    def tensors(self, layer: nn.Module) -> dict[str, torch.Tensor]:
        """SGLang's parameters, as they were loaded."""
        return {name: getattr(layer, name).data for name in self._names}

    def filled(self, layer: nn.Module) -> None:
        """SGLang's own work after loading."""
        self._method.process_weights_after_loading(layer)

    def create_runner(self, layer: nn.Module, config: Any) -> None:
        """Builds SGLang's runner over S experts.

        ``num_local_experts`` differs from ``num_experts`` so that 0.5.17 skips the id -1 too;
        the input is never overwritten, because the pool reads it as well.
        """
        config = dataclasses.replace(
            config, num_local_experts=max(self._num_slots, 1), inplace=False
        )
        self._method.create_moe_runner(layer, config)

    def runner_backend(self, layer: nn.Module) -> Any:
        """SGLang's own choice."""
        return self._method.get_moe_runner_backend(layer)

    def routing_method_type(self, layer: nn.Module, requested: Any) -> Any:
        """SGLang's own choice."""
        return self._method.get_moe_routing_method_type(layer, requested)

    def add(
        self,
        layer: nn.Module,
        dispatch_output: Any,
        slots: torch.Tensor,
        weights: torch.Tensor,
        out: torch.Tensor,
    ) -> None:
        """Through SGLang's torch-native path.

        That path takes neither -1 nor one id twice in a row, so each mapped pair becomes a row
        with one expert; the rows are added up in float32.
        """
        tokens, columns = (slots >= 0).nonzero(as_tuple=True)
        topk = dispatch_output.topk_output._replace(
            topk_ids=slots[tokens, columns].unsqueeze(1),
            topk_weights=weights[tokens, columns].unsqueeze(1),
        )
        rows = dispatch_output._replace(
            hidden_states=dispatch_output.hidden_states[tokens], topk_output=topk
        )
        computed = self._method.apply(layer, rows).hidden_states
        out.index_add_(0, tokens, computed.float())
