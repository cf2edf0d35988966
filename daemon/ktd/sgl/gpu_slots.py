"""Chooses what keeps a layer's slots on a GPU, by what SGLang does to its experts after loading."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, MutableMapping
from typing import Any

import torch
from torch import nn

from ktd.sgl.converted_slots import ConvertedSlots, RepackedSlots
from ktd.sgl.expert_format import ExpertFormat
from ktd.sgl.expert_loader import ExpertLoader
from ktd.sgl.one_expert import OneExpert
from ktd.sgl.scratch_expert import ScratchExpert
from ktd.sgl.sglang_slots import SglangSlots


def slots_on_gpu(
    method: Any,
    layer: nn.Module,
    loader: ExpertLoader,
    num_slots: int,
    attributes: Mapping[str, Any],
    *,
    experts: ExpertFormat,
    scratch: MutableMapping[Hashable, ScratchExpert],
    device: torch.device,
    **options: Any,
) -> SglangSlots:
    """Slots of one layer.

    Args:
        method: SGLang's method.
        layer: SGLang's layer, before it has parameters.
        loader: The layer's.
        num_slots: S.
        attributes: What else SGLang's layer gave to ``create_weights``.
        experts: In host memory.
        scratch: The rank's scratch experts, by what they are for; a missing one is made.
        device: Where.
        options: As of :class:`SglangSlots`.

    Raises:
        RuntimeError: SGLang's Triton runner wants 4-bit experts otherwise than their checkpoint.
    """
    if not experts.repacked:
        if not experts.transposed:
            return SglangSlots(method, layer, loader, num_slots, attributes, **options)
        expert = OneExpert(method, layer, experts, attributes, device)
        if not expert.keeps_bytes():
            raise RuntimeError(
                f"SGLang's {type(method).__name__} keeps {experts.weights} experts otherwise than "
                "their checkpoint, so they cannot be copied into slots as they are; leave out "
                "--moe-runner-backend triton"
            )
        return ConvertedSlots(
            method, layer, loader, num_slots, attributes, layout=expert.layout, **options
        )
    shapes = ((name, meta.shape[1:], meta.dtype) for name, meta in loader.template.items())
    key = (experts.weights, *shapes)
    if key not in scratch:
        scratch[key] = ScratchExpert(OneExpert(method, layer, experts, attributes, device))
    return RepackedSlots(
        method, layer, loader, num_slots, attributes, scratch=scratch[key], **options
    )
