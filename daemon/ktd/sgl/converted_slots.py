"""Slots whose layout SGLang makes after loading, on a GPU.

On its Triton runner a slot of 4-bit experts holds the bytes of host rows, under another type; on
its Marlin runner it holds them repacked. Either way SGLang's own code lays one expert out, and the
slots are made like that one, so that no S experts are ever there twice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ktd.experts.scattered import ExpertTensor
from ktd.sgl.cuda_step import WithParameters
from ktd.sgl.expert_loader import ExpertLoader
from ktd.sgl.learnt_layout import LearntLayout
from ktd.sgl.marlin_runner import MappedDispatcher, MappedRunner, skips_by_itself
from ktd.sgl.one_expert import Layout
from ktd.sgl.scratch_expert import RepackedSource, ScratchExpert
from ktd.sgl.sglang_slots import SglangSlots
from ktd.sgl.slot_source import PlainSource, SlotSource


class ConvertedSlots(SglangSlots):
    """S experts as SGLang's method has them after loading, which has to keep host rows' bytes.

    Args:
        method: SGLang's method.
        layer: Gets the parameters.
        loader: The layer's; the parameters carry it.
        num_slots: S.
        attributes: What else SGLang's layer gave to ``create_weights``.
        layout: What SGLang's work after loading makes of them.
        options: As of :class:`SglangSlots`.
    """

    def __init__(
        self,
        method: Any,
        layer: nn.Module,
        loader: ExpertLoader,
        num_slots: int,
        attributes: Mapping[str, Any],
        *,
        layout: Layout,
        **options: Any,
    ) -> None:
        super().__init__(method, layer, loader, 1, attributes, **options)
        self._num_slots = num_slots
        self._layout = layout
        self._alike: dict[str, torch.Tensor] = {}  # every expert's are the same: [1, …]

    def prepare(self, layer: nn.Module) -> None:
        """SGLang's own work after loading, on one expert; then room for S."""
        self._method.process_weights_after_loading(layer)
        for name, parameter in list(layer.named_parameters(recurse=False)):
            like = self._layout.slot.get(name)
            if like is not None:
                # As bytes: torch fills not every type.
                size = math.prod(like.shape) * like.element_size()
                memory = torch.zeros(
                    (self._num_slots, size), dtype=torch.uint8, device=parameter.device
                )
                memory = memory.view(like.dtype).view(self._num_slots, *like.shape)
            elif name in self._layout.host:
                continue  # one expert's, which no runner reads
            else:
                # No checkpoint has it.
                self._alike[name] = parameter.data
                memory = parameter.data.repeat_interleave(self._num_slots, 0)
            layer.register_parameter(name, nn.Parameter(memory, requires_grad=False))

    def filled(self, layer: nn.Module) -> None:
        """SGLang's work was done before."""

    def tensors(self, layer: nn.Module) -> dict[str, torch.Tensor]:
        """The slots under the types that host memory has."""
        host = self._layout.host
        return {name: getattr(layer, name).data.view(host[name]) for name in self._layout.slot}

    def parameters(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Under SGLang's types."""
        slot = self._layout.slot
        return {name: tensor.view(slot[name].dtype) for name, tensor in tensors.items()}


class RepackedSlots(ConvertedSlots):
    """S experts in the order that SGLang's Marlin runner has within each.

    Args:
        of_layer: As of :class:`ConvertedSlots`, in that order.
        scratch: Through which experts pass into slots.
        options: As of :class:`SglangSlots`.
    """

    def __init__(self, *of_layer: Any, scratch: ScratchExpert, **options: Any) -> None:
        super().__init__(*of_layer, layout=scratch.expert.layout, **options)
        self._scratch = scratch
        self._map: torch.Tensor | None = None

    def tensors(self, layer: nn.Module) -> dict[str, torch.Tensor]:
        """The slots as they are."""
        return {name: getattr(layer, name).data for name in self._layout.slot}

    def parameters(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """With what no checkpoint has: the runner reads as many of each as there are experts."""
        count = next(iter(tensors.values())).shape[0]
        alike = {name: one.repeat_interleave(count, 0) for name, one in self._alike.items()}
        return {**alike, **super().parameters(tensors)}

    def source(self, tensors: Mapping[str, ExpertTensor]) -> SlotSource:
        """Host rows, by way of the scratch expert."""
        return RepackedSource(PlainSource(tensors), self._scratch)

    @property
    def streams(self) -> bool:
        """Where it is known how they are laid out."""
        return self.laid_out is not None

    @property
    def laid_out(self) -> LearntLayout | None:
        """As the scratch expert is."""
        return self._scratch.layout

    def create_runner(self, layer: nn.Module, config: Any) -> None:
        """Builds SGLang's runner, and sees to it that it skips the id -1 where one may come."""
        super().create_runner(layer, config)
        if config.num_experts == self._num_slots and not self._always_skips:
            return
        if skips_by_itself():
            return
        device = next(iter(self._scratch.rows.values())).device
        # As many as any piece of a prefill stream may have: the runner sorts pairs by so many ids.
        self._map = torch.arange(config.num_experts, dtype=torch.int32, device=device)
        kernel = getattr(getattr(layer, "scheme", None), "kernel", None)
        if kernel is not None:  # of GPTQ and AWQ; others have it from the dispatcher
            kernel.runner = MappedRunner(kernel.runner, self._map)

    def compute(
        self,
        layer: Any,
        dispatch_output: Any,
        slots: torch.Tensor,
        weights: torch.Tensor,
    ) -> torch.Tensor:
        """As :meth:`SglangSlots.compute`."""
        if self._map is not None:
            dispatcher = MappedDispatcher(getattr(layer, "dispatcher", None), self._map)
            layer = WithParameters(layer, {"dispatcher": dispatcher})
        computed = super().compute(layer, dispatch_output, slots, weights)
        hidden = self._scratch.expert.hidden
        return computed if hidden is None else computed[:, :hidden].contiguous()
