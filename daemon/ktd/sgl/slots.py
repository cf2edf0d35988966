"""Who computes a layer's slots: the contract, which has one implementation for each answer.

``sglang_slots`` lets SGLang's own method for the format do it, ``pool_slots`` the native pool.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import nn

from ktd.experts.scattered import ExpertTensor
from ktd.sgl.slot_source import SlotSource


class Slots(Protocol):
    """The S slots of one layer; created with their parameters, which carry the expert loader."""

    def prepare(self, layer: nn.Module) -> None:
        """Host memory is complete, and slots are about to be filled; may lay them out."""

    def tensors(self, layer: nn.Module) -> dict[str, torch.Tensor]:
        """Slot tensors ``[S, …]`` by parameter name; they are filled from :meth:`source`."""

    def source(self, tensors: Mapping[str, ExpertTensor]) -> SlotSource:
        """What fills them, of host memory ``[E, …]`` that is not quantised at load."""

    def filled(self, layer: nn.Module) -> None:
        """The first placement's experts are in their slots; may rearrange or register them."""

    def create_runner(self, layer: nn.Module, config: Any) -> None:
        """SGLang's ``create_moe_runner``."""

    def runner_backend(self, layer: nn.Module) -> Any:
        """SGLang's backend, which decides what its router hands over; None: plain ids."""

    def routing_method_type(self, layer: nn.Module, requested: Any) -> Any:
        """SGLang's kind of routing."""

    def add(
        self,
        layer: nn.Module,
        dispatch_output: Any,
        slots: torch.Tensor,
        weights: torch.Tensor,
        out: torch.Tensor,
    ) -> None:
        """Adds the slots' share of a step to ``out``.

        Args:
            layer: SGLang's layer.
            dispatch_output: What its dispatcher gave; bf16 hidden states ``[T, H]``.
            slots: int32 ``[T, K]``: the slot of each pair, -1 where another side computes.
            weights: float32 ``[T, K]``.
            out: float32 ``[T, H]``.
        """


def without_memory(layer: nn.Module, name: str, loader: Callable[..., None]) -> nn.Parameter:
    """Gives a layer a parameter of SGLang's by which loading finds ``loader``, and nothing else."""
    parameter = nn.Parameter(torch.empty(0), requires_grad=False)
    parameter.weight_loader = loader  # type: ignore[attr-defined]
    layer.register_parameter(name, parameter)
    return parameter
