"""A whole model of a published shape: its configuration and the tensors of its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ktd.shapes.tensors import Tensor


@dataclass(frozen=True, slots=True)
class ModelShape:
    """One model.

    Attributes:
        name: What ``--shape`` takes.
        layers: Decoder layers; fewer than published where somebody asked for it.
        num_experts: Routed experts of a layer.
        config: ``config.json``.
        tensors: Everything in the checkpoint, in the order in which it lies there.
    """

    name: str
    layers: int
    num_experts: int
    config: Mapping[str, Any]
    tensors: tuple[Tensor, ...]

    @property
    def expert_bytes(self) -> int:
        """Of all routed experts."""
        return sum(tensor.num_bytes for tensor in self.tensors if tensor.expert)

    @property
    def other_bytes(self) -> int:
        """Of the rest."""
        return sum(tensor.num_bytes for tensor in self.tensors if not tensor.expert)
