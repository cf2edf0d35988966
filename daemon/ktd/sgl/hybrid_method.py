"""The MoE method in the place of SGLang's own: slots on the device, the rest on the CPU.

It wraps SGLang's method for the format. Slots compute the experts they hold, the native pool
the others. The routing is split once per step (invariant 3): a slot id or -1 for the device, an
expert id or -1 for the pool; who does what in a step is HostStep's or CudaStep's business.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from sglang.srt.layers.moe.token_dispatcher import StandardCombineInput
from sglang.srt.layers.moe.utils import get_moe_runner_backend
from sglang.srt.layers.quantization.base_config import FusedMoEMethodBase
from torch import nn

from ktd.experts.scattered import ExpertTensor
from ktd.experts.weights import ExpertWeights, WeightFormat
from ktd.sgl import cuda_formats
from ktd.sgl.absent_ids import Trials, fill_empty, release_to_try
from ktd.sgl.expert_format import ExpertFormat, FormatRefused, expert_format, quantised
from ktd.sgl.expert_layer import ExpertLayer
from ktd.sgl.expert_loader import ExpertLoader, LayerTemplate
from ktd.sgl.host_step import HostStep
from ktd.sgl.limits import ExpertMath, LayerRefused, math_of, routed_scale_of
from ktd.sgl.mapped_parameter import Mapper
from ktd.sgl.pool_slots import PoolSlots
from ktd.sgl.rank import Rank, StartRefused
from ktd.sgl.sglang_slots import SglangSlots, unquantised_method
from ktd.sgl.slot_source import QuantisedSource, SlotSource
from ktd.sgl.slots import Slots
from ktd.sgl.weight_file import WeightsUnreadable


class HybridMoEMethod(FusedMoEMethodBase):
    """SGLang's quantisation-method interface over an :class:`ExpertLayer`.

    Args:
        gpu_method: SGLang's own method for the layer's format; beside a GPU, that for what slots
            hold, once the layer's weights are declared.
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
        self._format: ExpertFormat  # of the checkpoint
        self._stored: ExpertFormat  # in host memory
        self._in_slots: ExpertFormat
        self._math: ExpertMath
        self._loader: ExpertLoader
        self._slots: Slots
        self._layer: ExpertLayer
        self._step: Callable[[nn.Module, Any], torch.Tensor]

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
        attributes |= {
            "hidden_size": hidden_size,
            "intermediate_size_per_partition": intermediate_size_per_partition,
            "params_dtype": params_dtype,
        }
        try:
            self._math = math_of(layer, params_dtype, num_experts)
            if self._rank.on_gpu:
                cuda_formats.settle(self.gpu_method, layer)
            self._format = expert_format(self.gpu_method, layer, self._math)
            if self._rank.on_gpu:
                self._format = cuda_formats.beside_gpu(
                    self._format,
                    self._math,
                    hidden=hidden_size,
                    width=intermediate_size_per_partition,
                )
            self._stored = self._in_slots = self._format
            if self._rank.quantiser is not None:
                wanted = self._rank.quantiser.format
                self._stored, self._in_slots = quantised(self._format, wanted)
            if self._rank.on_gpu:
                cuda_formats.check_runner(
                    self._in_slots, get_moe_runner_backend(), intermediate_size_per_partition
                )
                cuda_formats.check(self._in_slots, self._math)
                cuda_formats.check_gpu(self._in_slots, torch.cuda.get_device_capability())
            template = LayerTemplate(layer)
            with torch.device("meta"):
                self.gpu_method.create_weights(
                    layer=template, num_experts=num_experts, **attributes
                )
            declared = dict(template.named_parameters())
            self._loader = ExpertLoader(
                self._format.host_parameters(declared),
                store=self._rank.store,
                load=weight_loader,
                loaded=self._rank.loaded_bytes,
                reader=self._rank.reader,
                place=self._rank.pool.place,
                quantiser=self._rank.quantiser,
                source=self._format,
                mapper=self._mapper(),
            )
        except (FormatRefused, LayerRefused) as refused:
            sentence = f"layer {self._layer_id}: {refused}"
            raise self._rank.refuse("model", sentence) from refused
        self._rank.expect_bytes(self._loader.num_bytes)
        self._rank.attach_gpu(hidden=hidden_size)
        self._rank.attach_bench()
        # SGLang's loader follows the layout of this method, not of the wrapper (0.5.23).
        layer.weight_load_method = self.gpu_method
        if self._rank.on_gpu and self._in_slots.weights is not self._format.weights:
            self.gpu_method = unquantised_method(layer)
        self._slots = self._make_slots(layer, attributes, declared)
        if self._format.transposed:
            # It would turn round what it loads for this scheme, which it knows by its class.
            layer.scheme = _LoadedAsStored(layer.scheme)  # type: ignore[assignment]

    def _make_slots(
        self,
        layer: nn.Module,
        attributes: dict[str, Any],
        declared: Mapping[str, nn.Parameter],
    ) -> Slots:
        of_layer = (self.gpu_method, layer, self._loader, self._num_slots, attributes)
        options: dict[str, Any] = {
            "names": tuple(self._in_slots.fields),
            "unstored": self._format.unstored(declared),
            "always_skips": self._rank.spec.has_cpu_path(self._position),
        }
        side = self._rank.side
        if side is not None:
            # Imported here: on a host without a GPU nothing of it is needed.
            from ktd.sgl.gpu_slots import slots_on_gpu

            return slots_on_gpu(
                *of_layer,
                experts=self._in_slots,
                scratch=side.scratch,
                device=side.device,
                **options,
            )
        # Without a GPU SGLang's method is for these alone.
        if self._format.weights is WeightFormat.BF16 and self._math.plain:
            return SglangSlots(*of_layer, **options)
        return PoolSlots(
            layer,
            self._loader,
            self._num_slots,
            template=self._format.slot_parameters(declared, self._in_slots),
            store=self._rank.store,
            pool=self._rank.pool,
            experts=self._experts,
            read=self._rank.slots_read,
            unstored=self._format.unstored(declared),
        )

    def _experts(self, tensors: Mapping[str, torch.Tensor]) -> ExpertWeights:
        return self._in_slots.experts(tensors, self._math)

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
        if self._rank.on_gpu:
            self._check_zeros(tensors)
        self._rank.copied_bytes += self._loader.copied_bytes
        self._slots.prepare(layer)
        self._layer = ExpertLayer(
            layer=self._layer_id,
            num_experts=self._rank.spec.num_experts,
            num_slots=self._num_slots,
            store=self._source(tensors),
            slots=self._slots.tensors(layer),
            table=torch.full((self._rank.spec.num_experts,), -1, dtype=torch.int32, device="cpu"),
        )
        self._rank.register_memory(tensors.values())
        for expert in self._rank.spec.initial[self._position]:
            self._layer.reserve(expert).run(self._rank.lane)
            self._layer.publish(expert)
        self._slots.filled(layer)
        self._step = self._make_step(layer, tensors)
        self._rank.add_layer(self._layer)

    def _check_zeros(self, tensors: Mapping[str, ExpertTensor]) -> None:
        try:
            cuda_formats.check_zeros(self._format, tensors)
        except FormatRefused as refused:
            raise self._rank.refuse("model", f"layer {self._layer_id}: {refused}") from refused

    def _make_step(
        self, layer: nn.Module, tensors: Mapping[str, ExpertTensor]
    ) -> Callable[[nn.Module, Any], torch.Tensor]:
        experts = self._stored.experts(tensors, self._math)
        rank, side = self._rank, self._rank.side
        if side is None:
            return HostStep(
                rank, self._position, self._layer, rank.pool.add_layer(experts), self._slots
            )
        if not isinstance(self._slots, SglangSlots):
            raise TypeError(f"slots on a GPU are SGLang's, not {type(self._slots).__name__}")
        # Imported here: on a host without a GPU nothing of it is needed.
        from ktd.sgl.cuda_step import CudaStep, StreamedLayer

        handle, streamed = None, None
        if rank.spec.has_cpu_path(self._position):
            scale = routed_scale_of(layer)
            handle = rank.pool.add_layer(dataclasses.replace(experts, routed_scale=scale))
            if side.stream is not None and self._slots.streams:
                host, layout = _in_one_piece(tensors), self._slots.laid_out
                place = side.stream.add_layer(self._position, self._layer, host, layout)
                table = side.stream.table(place)
                device = side.streamed_layer(self._position, handle, table)
                streamed = StreamedLayer(side.stream, place, self._num_slots, device)
        return CudaStep(
            side,
            self._position,
            side.layer(self._position, handle, deferred=rank.spec.deferred_of(self._position)),
            self._slots,
            has_slots=self._num_slots > 0,
            whole=handle is None and self._layer.mapped() == list(range(rank.spec.num_experts)),
            streamed=streamed,
            # Where every expert has a slot for good, no pair is absent, and none is left out.
            trials=self._trials(
                slots=self._num_slots > 0 and handle is not None, pieces=streamed is not None
            ),
        )

    def _trials(self, *, slots: bool, pieces: bool) -> Trials | None:
        release = release_to_try()
        if not release or not (slots or pieces):
            return None
        fill_empty(self._layer)

        def refuse(sentence: str) -> StartRefused:
            return self._rank.refuse("incompatible", f"layer {self._layer_id}: {sentence}")

        return Trials(release, self._layer, refuse, slots=slots, pieces=pieces)

    def _mapper(self) -> Mapper | None:
        store = self._rank.store
        return Mapper(store, self._format, self._math.interleaved) if store.mapped else None

    def _source(self, tensors: Mapping[str, ExpertTensor]) -> SlotSource:
        quantiser = self._rank.quantiser
        if quantiser is None:
            return self._slots.source(tensors)
        return QuantisedSource(_in_one_piece(tensors), quantiser.format)

    def create_moe_runner(self, layer: nn.Module, moe_runner_config: Any) -> None:
        """A runner for the slots."""
        self._slots.create_runner(layer, moe_runner_config)

    def get_moe_runner_backend(self, layer: nn.Module) -> Any:
        """The slots' choice."""
        return self._slots.runner_backend(layer)

    def get_moe_routing_method_type(self, layer: nn.Module, requested_method: Any) -> Any:
        """The slots' choice."""
        return self._slots.routing_method_type(layer, requested_method)

    # --- one step ------------------------------------------------------------------------

    def apply(self, layer: nn.Module, dispatch_output: Any) -> StandardCombineInput:
        """Computes ``[tokens, hidden]``."""
        if self._rank.bench_routing is not None:
            dispatch_output = self._rank.bench_routing.replaced(self._position, dispatch_output)
        return StandardCombineInput(hidden_states=self._step(layer, dispatch_output))

    def __getattr__(self, name: str) -> Any:
        """Whatever else SGLang asks of its method, the wrapped one answers."""
        if name == "gpu_method" or name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.gpu_method, name)


class _LoadedAsStored:
    """A scheme of SGLang's under another class's name."""

    def __init__(self, scheme: Any) -> None:
        self._scheme = scheme

    def __getattr__(self, name: str) -> Any:
        if name == "_scheme":
            raise AttributeError(name)
        return getattr(self._scheme, name)


def _in_one_piece(tensors: Mapping[str, ExpertTensor]) -> dict[str, torch.Tensor]:
    """For what goes with no mapped store, where every tensor is one."""
    found = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, torch.Tensor)}
    if len(found) != len(tensors):
        raise TypeError(f"{sorted(set(tensors) - set(found))} are scattered")
    return found
