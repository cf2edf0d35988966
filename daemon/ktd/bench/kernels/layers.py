"""The working set of a measurement: layers of random experts, larger than the caches."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ktd.bench.kernels.formats import ExpertMould
from ktd.errors import DoesNotFit
from ktd.experts.store import HostStore
from ktd.experts.weights import ExpertWeights, WeightFormat
from ktd.shapes.moe import MoeShape

CACHES = 8  # working set in last-level caches
_SHARE = 0.85  # of the memory that is available
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Plan:
    """How many layers of how many experts.

    Attributes:
        layers: At least 1.
        experts: Of each layer: the shape's number, or fewer where memory is short.
        expert_bytes: Of one expert.
    """

    layers: int
    experts: int
    expert_bytes: int

    @property
    def total(self) -> int:
        """Bytes of the whole working set."""
        return self.layers * self.experts * self.expert_bytes

    @classmethod
    def of(
        cls, shape: MoeShape, weight_format: str, expert_bytes: int, *, cache: int, available: int
    ) -> Plan:
        """Enough layers to be ``CACHES`` times as large as ``cache``, within ``available``.

        Raises:
            DoesNotFit: Not even one layer with enough experts does; the sentence has the sum.
        """
        room = int(available * _SHARE)
        wanted = CACHES * cache
        layer = shape.experts * expert_bytes
        layers = max(1, math.ceil(wanted / layer))
        if layers * layer <= room:
            return cls(layers, shape.experts, expert_bytes)
        fewest = max(shape.top_k + 1, math.ceil(wanted / expert_bytes))
        experts = min(shape.experts, room // expert_bytes)
        if layers > 1 or experts < fewest:
            need = min(fewest, shape.experts) * expert_bytes if layers == 1 else layers * layer
            raise DoesNotFit(
                f"{shape.name} in {weight_format} needs {need / _GIB:.1f} GiB ("
                f"{need // expert_bytes} experts of {expert_bytes / (1 << 20):.1f} MiB, {CACHES} x"
                f" the {cache / (1 << 20):.0f} MiB of last-level cache), but {room / _GIB:.1f} GiB"
                f" of {available / _GIB:.1f} can be used: free memory, or take a smaller shape",
                required_bytes=str(need),
                available_bytes=str(available),
            )
        return cls(1, experts, expert_bytes)


@dataclass(frozen=True, slots=True)
class LayerSet:
    """Layers of one shape in one format."""

    shape: MoeShape
    format: WeightFormat
    plan: Plan
    layers: tuple[ExpertWeights, ...]

    @classmethod
    def make(
        cls,
        shape: MoeShape,
        weight_format: WeightFormat,
        *,
        cache: int,
        available: int,
        progress: Callable[[str], None],
    ) -> LayerSet:
        """Draws an expert and fills the layers with it.

        Raises:
            DoesNotFit: See Plan.of.
        """
        torch.manual_seed(0)
        mould = ExpertMould(shape, weight_format)
        plan = Plan.of(
            shape, weight_format.value, mould.expert_bytes, cache=cache, available=available
        )
        scaled = "" if plan.experts == shape.experts else f" of {shape.experts}, for want of memory"
        progress(
            f"{shape.name} {weight_format}: filling {plan.layers} x {plan.experts} experts{scaled},"
            f" {plan.total / _GIB:.1f} GiB"
        )
        store = HostStore()
        layers = tuple(mould.layer(plan.experts, store.allocate) for _ in range(plan.layers))
        return cls(shape, weight_format, plan, layers)
