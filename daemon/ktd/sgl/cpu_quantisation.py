"""SGLang's configurations of quantised checkpoints, for hosts without a GPU.

SGLang registers what its GPU kernels compute: GPTQ and AWQ experts through Marlin alone. ktd's pool
computes them on the CPU, so these configurations stand in their place, say what the tensors are,
and refuse quantised layers that are no experts, for which SGLang has GPU kernels only.
"""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.layers.linear import LinearBase
from sglang.srt.layers.moe.fused_moe_triton import FusedMoE
from sglang.srt.layers.quantization import QUANTIZATION_METHODS
from sglang.srt.layers.quantization.awq.awq import AWQConfig, AWQMoEMethod, is_layer_skipped_awq
from sglang.srt.layers.quantization.awq.schemes import AWQMoEScheme
from sglang.srt.layers.quantization.fp8 import Fp8Config, Fp8LinearMethod
from sglang.srt.layers.quantization.gptq.gptq import GPTQConfig, GPTQMarlinMoEMethod
from sglang.srt.layers.quantization.gptq.schemes import GPTQMarlinMoEScheme
from sglang.srt.layers.quantization.unquant import (
    UnquantizedFusedMoEMethod,
    UnquantizedLinearMethod,
)
from sglang.srt.layers.quantization.utils import get_dynamic_override

from ktd.sgl.expert_format import FormatRefused
from ktd.sgl.int8_experts import Int8ExpertsConfig


def register() -> None:
    """Puts these in the place of SGLang's; before a process looks at a model's configuration."""
    QUANTIZATION_METHODS.update(
        {
            "awq": CpuAwqConfig,
            "gptq": CpuGptqConfig,
            "fp8": CpuFp8Config,
            "compressed-tensors": CpuCompressedTensorsConfig,
        }
    )


def _dense_refused(prefix: str) -> FormatRefused:
    return FormatRefused(
        f"{prefix} is quantised and no expert, which SGLang computes on GPUs only; use a checkpoint"
        " whose experts alone are quantised"
    )


class CpuFp8Config(Fp8Config):
    """FP8 in SGLang's own layout."""

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> Any:
        """SGLang's own, but for dense layers."""
        method = super().get_quant_method(layer, prefix)
        if isinstance(method, Fp8LinearMethod):
            raise _dense_refused(prefix)
        return method


class CpuAwqConfig(AWQConfig):
    """AWQ with experts in the checkpoint's layout."""

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        """What ktd's experts run in."""
        return [torch.bfloat16]

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> Any:
        """The methods of SGLang's Marlin configuration, whose parameters are the checkpoint's."""
        skipped = is_layer_skipped_awq(prefix, self.modules_to_not_convert)
        if isinstance(layer, LinearBase):
            if not skipped:
                raise _dense_refused(prefix)
            return UnquantizedLinearMethod()
        if not isinstance(layer, FusedMoE):
            return None
        if skipped:
            return UnquantizedFusedMoEMethod(layer.use_triton_kernels)
        layer.scheme = AWQMoEScheme(self)
        return AWQMoEMethod(self)


class CpuGptqConfig(GPTQConfig):
    """GPTQ, symmetric or not, with experts in the checkpoint's layout."""

    @classmethod
    def get_supported_act_dtypes(cls) -> list[torch.dtype]:
        """What ktd's experts run in."""
        return [torch.bfloat16]

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> Any:
        """The methods of SGLang's Marlin configuration, whose parameters are the checkpoint's."""
        if isinstance(layer, LinearBase):
            if get_dynamic_override(self, layer_name=prefix) is not False:
                raise _dense_refused(prefix)
            return UnquantizedLinearMethod()
        if not isinstance(layer, FusedMoE):
            return None
        rule = get_dynamic_override(self, layer_name=f"{prefix}.0.gate_proj")
        if rule is False:
            return UnquantizedFusedMoEMethod(layer.use_triton_kernels)
        if rule:
            raise FormatRefused(
                f"{prefix} is quantised otherwise than the rest ({rule}), which is not implemented;"
                " use a checkpoint whose experts are quantised alike"
            )
        layer.scheme = GPTQMarlinMoEScheme(self)
        return GPTQMarlinMoEMethod(self)


class CpuCompressedTensorsConfig(Int8ExpertsConfig):
    """compressed-tensors, INT8 experts included."""

    def get_linear_scheme(
        self,
        layer: torch.nn.Module,
        layer_name: str | None = None,
        matched_target: str | None = None,
    ) -> None:
        """Nothing for a layer that is left alone."""
        if self.get_scheme_dict(layer, layer_name, matched_target) is not None:
            raise _dense_refused(str(layer_name))
