"""SGLang's configuration of compressed-tensors, with INT8 experts.

SGLang has a scheme for these on another vendor's devices alone. Its method for its own INT8
checkpoints takes the same tensors, and its Triton runner computes them.
"""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.layers.moe.fused_moe_triton import FusedMoE
from sglang.srt.layers.quantization import QUANTIZATION_METHODS
from sglang.srt.layers.quantization.compressed_tensors.compressed_tensors import (
    CompressedTensorsConfig,
)
from sglang.srt.layers.quantization.w8a8_int8 import W8A8Int8MoEMethod


def register() -> None:
    """Puts it in the place of SGLang's; before a process looks at a model's configuration."""
    QUANTIZATION_METHODS["compressed-tensors"] = Int8ExpertsConfig


class Int8ExpertsConfig(CompressedTensorsConfig):
    """compressed-tensors, INT8 experts included."""

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> Any:
        """SGLang's own, but for INT8 experts."""
        if isinstance(layer, FusedMoE) and self._has_int8(layer, prefix):
            return W8A8Int8MoEMethod(self)
        return super().get_quant_method(layer, prefix)

    def _has_int8(self, layer: FusedMoE, prefix: str) -> bool:
        self._add_fused_moe_to_target_scheme_map()
        scheme = self.get_scheme_dict(layer, f"{prefix}.0.gate_proj")
        # 0.5.17 asks more of experts whose activations are not quantised, and fails.
        if scheme is None or scheme["weights"] is None or scheme["input_activations"] is None:
            return False
        quantised = scheme["weights"], scheme["input_activations"]
        return not self._is_fp8_w8a8(*quantised) and self._is_dynamic_token_w8a8(*quantised)
