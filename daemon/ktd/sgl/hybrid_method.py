"""The MoE method in the place of SGLang's own: slots on the device, the rest on the CPU.

It wraps SGLang's method for the format, which keeps computing the slots, and adds what the native
pool computes. The routing is split once per step (invariant 3): a slot id or -1 for the device, an
expert id or -1 for the pool.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.layers.moe.token_dispatcher import StandardCombineInput
from sglang.srt.layers.quantization.base_config import FusedMoEMethodBase
from torch import nn

from ktd.experts.weights import ExpertWeights, WeightFormat
from ktd.sgl.expert_layer import ExpertLayer
from ktd.sgl.expert_loader import ExpertLoader, LayerTemplate
from ktd.sgl.limits import why_not_supported
from ktd.sgl.rank import Rank
from ktd.sgl.weight_file import WeightsUnreadable


class HybridMoEMethod(FusedMoEMethodBase):
    """SGLang's quantisation-method interface over an :class:`ExpertLayer`.

    Args:
        gpu_method: SGLang's own method for the layer's format.
        rank_of: Gives the process's ktd state for a layer.
        layer_id: Index of the layer in the model.
    """

    def __init__(
        self, gpu_method: Any, rank_of: Callable[[nn.Module], Rank], layer_id: int
    ) -> None:
        self.gpu_method = gpu_method
        self._rank_of = rank_of
        self._layer_id = layer_id
        self._num_slots = 0
        self._rank: Rank
        self._position: int
        self._loader: ExpertLoader
        self._layer: ExpertLayer
        self._handle: int

    # --- construction and loading ----------------------------------------------------------

    def create_weights(
        self,
        layer: nn.Module,
        num_experts: int,
        hidden_size: int,
        intermediate_size_per_partition: int,
        params_dtype: torch.dtype,
        *,
        weight_loader: Any,
        **attributes: Any,
    ) -> None:
        """Allocates S slots as SGLang's method wants them, and host memory for all E experts."""
        self._rank = self._rank_of(layer)
        self._position = self._rank.position_of(self._layer_id)
        self._num_slots = self._rank.spec.slots[self._position]
        problem = why_not_supported(layer, self.gpu_method, params_dtype, num_experts)
        if problem is not None:
            raise self._rank.refuse("model", f"layer {self._layer_id}: {problem}")
        shape = {
            "hidden_size": hidden_size,
            "intermediate_size_per_partition": intermediate_size_per_partition,
            "params_dtype": params_dtype,
        }
        template = LayerTemplate(layer)
        with torch.device("meta"):
            self.gpu_method.create_weights(
                layer=template, num_experts=num_experts, **shape, **attributes
            )
        self._loader = ExpertLoader(
            dict(template.named_parameters()),
            store=self._rank.store,
            load=weight_loader,
            loaded=self._rank.loaded_bytes,
            reader=self._rank.reader,
            place=self._rank.pool.place,
        )
        self._rank.expect_bytes(self._loader.num_bytes)
        self.gpu_method.create_weights(
            layer=layer,
            num_experts=self._num_slots,
            **shape,
            weight_loader=self._loader,
            **attributes,
        )
        for name in self._loader.tensors:
            self._loader.attach(name, getattr(layer, name))
        # SGLang's loader follows the layout of this method, not of the wrapper (0.5.23).
        layer.weight_load_method = self.gpu_method

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Checks that the store is complete, fills the first placement's slots, joins the pool."""
        try:
            self._loader.finish()
        except WeightsUnreadable as error:
            raise self._rank.refuse("model", str(error)) from error
        missing = self._loader.missing()
        if missing is not None:
            raise self._rank.refuse(
                "model",
                f"the checkpoint has no {missing} of layer {self._layer_id}; download it again",
            )
        tensors = self._loader.tensors
        slots = {name: getattr(layer, name).data for name in tensors}
        self._layer = ExpertLayer(
            layer=self._layer_id,
            num_experts=self._rank.spec.num_experts,
            num_slots=self._num_slots,
            store=tensors,
            slots=slots,
            table=torch.full((self._rank.spec.num_experts,), -1, dtype=torch.int32),
        )
        for expert in self._rank.spec.initial[self._position]:
            for destination, source in self._layer.reserve(expert).tensors:
                destination.copy_(source)
            self._layer.publish(expert)
        self.gpu_method.process_weights_after_loading(layer)
        self._handle = self._rank.pool.add_layer(
            ExpertWeights(WeightFormat.BF16, tensors["w13_weight"], tensors["w2_weight"])
        )
        self._rank.add_layer(self._layer)

    def create_moe_runner(self, layer: nn.Module, moe_runner_config: Any) -> None:
        """Builds SGLang's runner over S experts.

        ``num_local_experts`` differs from ``num_experts`` so that 0.5.17 skips the id -1 too;
        the input is never overwritten, because the pool reads it as well.
        """
        config = dataclasses.replace(
            moe_runner_config, num_local_experts=max(self._num_slots, 1), inplace=False
        )
        self.gpu_method.create_moe_runner(layer, config)

    def get_moe_runner_backend(self, layer: nn.Module) -> Any:
        """SGLang's own choice for the slots."""
        return self.gpu_method.get_moe_runner_backend(layer)

    def get_moe_routing_method_type(self, layer: nn.Module, requested_method: Any) -> Any:
        """SGLang's own choice for the slots."""
        return self.gpu_method.get_moe_routing_method_type(layer, requested_method)

    # --- one step ------------------------------------------------------------------------

    def apply(self, layer: nn.Module, dispatch_output: Any) -> StandardCombineInput:
        """Computes ``[tokens, hidden]``: the pool's float32 sum plus the slots' share."""
        hidden = dispatch_output.hidden_states
        topk = dispatch_output.topk_output
        ids, weights = topk.topk_ids, topk.topk_weights.float().contiguous()
        routed = self._rank.route(self._position, ids.contiguous(), self._layer.table)
        if routed.on_cpu:
            out = self._rank.pool.forward(
                self._handle, hidden.contiguous(), routed.cpu_ids, weights
            )
        else:
            out = torch.zeros(hidden.shape, dtype=torch.float32)
        if routed.in_slots:
            self._add_slots(layer, dispatch_output, routed.slots, weights, out)
        return StandardCombineInput(hidden_states=out.to(hidden.dtype))

    def _add_slots(
        self,
        layer: nn.Module,
        dispatch_output: Any,
        slots: torch.Tensor,
        weights: torch.Tensor,
        out: torch.Tensor,
    ) -> None:
        """Adds the slots' share through SGLang's torch-native path.

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
        computed = self.gpu_method.apply(layer, rows).hidden_states
        out.index_add_(0, tokens, computed.float())

    def __getattr__(self, name: str) -> Any:
        """Whatever else SGLang asks of its method, the wrapped one answers."""
        if name == "gpu_method" or name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.gpu_method, name)
