"""Slots in host memory that the native pool computes, as a layer of S experts beside the E.

On a host without a GPU SGLang has no method for quantised experts. Here a slot holds an expert as
the checkpoint does, and the same kernels compute both, so that what an expert gives to a
token has the same bits wherever it is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ktd.experts.pool import ExpertPool
from ktd.experts.scattered import ExpertTensor
from ktd.experts.store import HostStore
from ktd.experts.weights import ExpertWeights
from ktd.sgl.expert_loader import ExpertLoader, WeightLoader
from ktd.sgl.slot_source import PlainSource, SlotSource
from ktd.sgl.slots import without_memory


class PoolSlots:
    """S experts in the checkpoint's layout; see :class:`ktd.sgl.slots.Slots`.

    Args:
        layer: Gets parameters under SGLang's names, by which the model's loader finds the experts.
        loader: The layer's; the parameters carry it.
        num_slots: S.
        template: What slots have in place of the loader's parameters, of the meta device; None: the
            same. One that has nothing in a slot is attached to the loader without memory.
        store: Where host memory comes from.
        pool: Computes.
        experts: Makes the pool's weights of tensors by parameter name.
        read: Called with the bytes of weights that each step reads in slots.
        unstored: Loaders of SGLang's other parameters, which have no memory here.
    """

    def __init__(
        self,
        layer: nn.Module,
        loader: ExpertLoader,
        num_slots: int,
        *,
        template: Mapping[str, nn.Parameter] | None = None,
        store: HostStore,
        pool: ExpertPool,
        experts: Callable[[Mapping[str, torch.Tensor]], ExpertWeights],
        read: Callable[[int], None],
        unstored: Mapping[str, WeightLoader],
    ) -> None:
        self._pool = pool
        self._experts = experts
        self._read = read
        self._num_slots = num_slots
        self._tensors: dict[str, torch.Tensor] = {}
        self._handle = -1
        template = loader.template if template is None else template
        for name in loader.template:
            if name not in template:
                loader.attach(name, without_memory(layer, name, loader))
                continue
            meta = template[name]
            shape = (num_slots, *meta.shape[1:])
            memory = (
                store.allocate(shape, meta.dtype)
                if num_slots
                else torch.empty(shape, dtype=meta.dtype)
            )
            parameter = nn.Parameter(memory, requires_grad=False)
            parameter.weight_loader = loader  # type: ignore[attr-defined]
            layer.register_parameter(name, parameter)
            loader.attach(name, parameter)
            self._tensors[name] = memory
        for name, weight_loader in unstored.items():
            without_memory(layer, name, weight_loader)

    def prepare(self, layer: nn.Module) -> None:
        """They are as they stay."""

    def source(self, tensors: Mapping[str, ExpertTensor]) -> SlotSource:
        """Host rows as they are."""
        return PlainSource(tensors)

    def tensors(self, layer: nn.Module) -> dict[str, torch.Tensor]:
        """In the checkpoint's layout."""
        return dict(self._tensors)

    def filled(self, layer: nn.Module) -> None:
        """The slots join the pool."""
        if self._num_slots:
            self._handle = self._pool.add_layer(self._experts(self._tensors))

    def create_runner(self, layer: nn.Module, config: Any) -> None:
        """SGLang runs nothing here."""

    def runner_backend(self, layer: nn.Module) -> None:
        """Plain ids and weights."""

    def routing_method_type(self, layer: nn.Module, requested: Any) -> Any:
        """Only runners that route for themselves ask."""
        return requested

    def add(
        self,
        layer: nn.Module,
        dispatch_output: Any,
        slots: torch.Tensor,
        weights: torch.Tensor,
        out: torch.Tensor,
    ) -> None:
        """One more call of the pool."""
        before = self._pool.bytes_read
        hidden = dispatch_output.hidden_states.contiguous()
        out.add_(self._pool.forward(self._handle, hidden, slots, weights))
        self._read(self._pool.bytes_read - before)
