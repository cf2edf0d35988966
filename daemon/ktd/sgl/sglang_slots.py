"""Slots that SGLang's own method for the format computes."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ktd.experts.scattered import ExpertTensor
from ktd.sgl.expert_loader import ExpertLoader, WeightLoader
from ktd.sgl.learnt_layout import LearntLayout
from ktd.sgl.slot_source import PlainSource, SlotSource
from ktd.sgl.slots import without_memory


class SglangSlots:
    """S experts as SGLang's method keeps them; see :class:`ktd.sgl.slots.Slots`.

    Args:
        method: SGLang's method.
        layer: Gets the parameters.
        loader: The layer's; the parameters carry it.
        num_slots: S.
        attributes: What else SGLang's layer gave to ``create_weights``.
        names: Parameters that slots have memory for; None: all of the loader's.
        unstored: Loaders of SGLang's other parameters, by name.
        always_skips: The runner takes the id -1 also if every expert has a slot.
    """

    def __init__(
        self,
        method: Any,
        layer: nn.Module,
        loader: ExpertLoader,
        num_slots: int,
        attributes: Mapping[str, Any],
        *,
        names: Sequence[str] | None = None,
        unstored: Mapping[str, WeightLoader] | None = None,
        always_skips: bool = False,
    ) -> None:
        self._method = method
        self._always_skips = always_skips
        self._num_slots = num_slots
        self._names = tuple(loader.template if names is None else names)
        with _local_experts(layer, num_slots):
            method.create_weights(
                layer=layer, num_experts=num_slots, weight_loader=loader, **attributes
            )
        for name in loader.template:
            found = getattr(layer, name) if name in self._names else None
            loader.attach(name, without_memory(layer, name, loader) if found is None else found)
        for name, ignoring in (unstored or {}).items():
            parameter = getattr(layer, name, None)
            if parameter is None:
                without_memory(layer, name, ignoring)
            else:
                parameter.weight_loader = ignoring

    def prepare(self, layer: nn.Module) -> None:
        """Slots are filled as they were created."""

    def tensors(self, layer: nn.Module) -> dict[str, torch.Tensor]:
        """SGLang's parameters, as they were loaded."""
        return {name: getattr(layer, name).data for name in self._names}

    def source(self, tensors: Mapping[str, ExpertTensor]) -> SlotSource:
        """Host rows as they are."""
        return PlainSource(tensors)

    @property
    def streams(self) -> bool:
        """Whether experts that pass through a prefill stream can be computed."""
        return True

    @property
    def laid_out(self) -> LearntLayout | None:
        """How they are laid out before that; None: they stay as host memory has them."""
        return None

    def parameters(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Experts ``[C, …]`` of a prefill stream, as SGLang's method takes its parameters."""
        return dict(tensors)

    def filled(self, layer: nn.Module) -> None:
        """SGLang's own work after loading, which has to leave the tensors where and as they are.

        Raises:
            RuntimeError: It did not: an expert copied into a slot later would not be in its layout.
        """
        if not self._num_slots:
            return
        before = {name: _look(tensor) for name, tensor in self.tensors(layer).items()}
        self._method.process_weights_after_loading(layer)
        for name, look in before.items():
            if _look(self.tensors(layer)[name]) != look:
                raise RuntimeError(
                    f"SGLang's {type(self._method).__name__} rearranges {name} after loading, so "
                    "experts cannot be copied into slots; choose --moe-runner-backend triton"
                )

    def create_runner(self, layer: nn.Module, config: Any) -> None:
        """Builds SGLang's runner over S experts.

        Fewer ``num_local_experts`` than ``num_experts`` make its runners skip the id -1, in 0.5.17
        too; a layer with a slot for every expert meets none and runs as SGLang would run it. The
        input is never overwritten, because the pool reads it as well.
        """
        local = max(self._num_slots, 1)
        if self._always_skips and config.num_experts == local:
            config = dataclasses.replace(config, num_experts=local + 1)
        config = dataclasses.replace(config, num_local_experts=local, inplace=False)
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

    def compute(
        self,
        layer: Any,
        dispatch_output: Any,
        slots: torch.Tensor,
        weights: torch.Tensor,
    ) -> torch.Tensor:
        """The slots' share on a GPU, through SGLang's fused runner, which skips the id -1.

        Args:
            layer: SGLang's layer, or what answers like it.
            dispatch_output: What its dispatcher gave; bf16 hidden states ``[T, H]``.
            slots: int32 ``[T, K]``: the slot of each pair, -1 where another side computes.
            weights: float32 ``[T, K]``.

        Returns:
            bf16 ``[T, H]``, not the input's memory.
        """
        topk = dispatch_output.topk_output._replace(topk_ids=slots, topk_weights=weights)
        computed: torch.Tensor = self._method.apply(
            layer, dispatch_output._replace(topk_output=topk)
        ).hidden_states
        return computed


def unquantised_method(layer: Any) -> Any:
    """SGLang's method for bf16 experts, made as its own configurations make it for such a layer."""
    from sglang.srt.layers.quantization.unquant import UnquantizedFusedMoEMethod

    return UnquantizedFusedMoEMethod(layer.use_triton_kernels, layer.use_flashinfer_trtllm_moe)


@contextlib.contextmanager
def _local_experts(layer: Any, count: int) -> Iterator[None]:
    """SGLang's MXFP4 method asks the layer for how many experts to have room."""
    local, layer.num_local_experts = layer.num_local_experts, count
    try:
        yield
    finally:
        layer.num_local_experts = local


def _look(tensor: torch.Tensor) -> tuple[int, torch.Size, tuple[int, ...], float]:
    """Where a tensor is, how it lies, and something of what is in it."""
    bits = tensor[0].contiguous().view(torch.uint8)
    return tensor.data_ptr(), tensor.shape, tensor.stride(), float(bits.float().sum())
