"""What the hybrid layer does not implement: refused by name, never computed wrongly."""

from __future__ import annotations

from typing import Any

import torch


def why_not_supported(
    layer: Any, gpu_method: Any, params_dtype: torch.dtype, num_experts: int
) -> str | None:
    """One clause that names why this MoE layer cannot be hybrid, or None.

    Args:
        layer: SGLang's ``FusedMoE``.
        gpu_method: Its own quantisation method.
        params_dtype: dtype of the expert weights.
        num_experts: Local experts that SGLang is about to allocate.
    """
    config = layer.moe_runner_config
    kind = type(gpu_method).__name__
    checks = (
        (kind != "UnquantizedFusedMoEMethod", f"expert weights of {kind} are not implemented"),
        (
            params_dtype != torch.bfloat16,
            f"experts run in bfloat16, not {params_dtype}; start with --dtype bfloat16",
        ),
        (config.activation != "silu", f"activation {config.activation!r} is not implemented"),
        (not config.is_gated, "experts without a gate projection are not implemented"),
        (bool(getattr(layer, "with_bias", False)), "expert biases are not implemented"),
        (
            config.gemm1_alpha is not None or config.gemm1_clamp_limit is not None,
            "a SwiGLU with alpha or clamp is not implemented",
        ),
        (
            getattr(config, "swiglu_limit", None) is not None,
            "a SwiGLU with a limit is not implemented",
        ),
        (
            config.apply_router_weight_on_input,
            "router weights applied to the input are not implemented",
        ),
        (bool(config.num_fused_shared_experts), "fused shared experts are not implemented"),
        (
            config.routed_scaling_factor not in (None, 1.0),
            f"a routed scaling factor of {config.routed_scaling_factor} is not implemented",
        ),
        (
            layer.moe_ep_size != 1 or num_experts != layer.num_experts,
            "expert parallelism is not supported",
        ),
    )
    return next((sentence for wrong, sentence in checks if wrong), None)
