"""What lies between an expert's products, from SGLang's layer; what no kernel has is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ktd.experts.weights import Activation, ActivationKind


class LayerRefused(Exception):  # says what happened
    """The layer cannot be hybrid; the clause names why."""


_SILU = Activation()


@dataclass(frozen=True, slots=True)
class ExpertMath:
    """What an expert computes beside its two products.

    Attributes:
        activation: Between the products.
        weights_before_input: The router weight multiplies gate and up instead of the output.
        interleaved: Gate and up rows alternate.
        biases: Both products have one.
    """

    activation: Activation = _SILU
    weights_before_input: bool = False
    interleaved: bool = False
    biases: bool = False

    @property
    def plain(self) -> bool:
        """Whether every implementation of experts computes it: SiLU and nothing else."""
        return self == ExpertMath()


_KINDS = {
    "silu": ActivationKind.SWISH,
    "gelu": ActivationKind.GELU,
    "gelu_tanh": ActivationKind.GELU_TANH,
}


def math_of(layer: Any, params_dtype: torch.dtype, num_experts: int) -> ExpertMath:
    """What SGLang's layer computes.

    Its ``routed_scaling_factor`` is no part of it: see :func:`routed_scale_of`; without a GPU
    SGLang's models multiply by it themselves.

    Args:
        layer: SGLang's ``FusedMoE``.
        params_dtype: dtype of the model.
        num_experts: Local experts that SGLang is about to allocate.

    Raises:
        LayerRefused: The kernels do not compute it.
    """
    config = layer.moe_runner_config
    swish, alpha = config.activation == "silu", config.gemm1_alpha
    limit = getattr(config, "swiglu_limit", None)
    checks = (
        (
            params_dtype != torch.bfloat16,
            f"experts run in bfloat16, not {params_dtype}; start with --dtype bfloat16",
        ),
        (
            config.activation not in _KINDS,
            f"activation {config.activation!r} is not implemented",
        ),
        (not config.is_gated, "experts without a gate projection are not implemented"),
        (
            not swish and (alpha is not None or limit is not None),
            f"activation {config.activation!r} with alpha or a limit is not implemented",
        ),
        (
            alpha is None and config.gemm1_clamp_limit is not None,
            "a clamp behind the activation is not implemented",
        ),
        (bool(config.num_fused_shared_experts), "fused shared experts are not implemented"),
        (
            layer.moe_ep_size != 1 or num_experts != layer.num_experts,
            "expert parallelism is not supported",
        ),
    )
    problem = next((sentence for wrong, sentence in checks if wrong), None)
    if problem is not None:
        raise LayerRefused(problem)
    # SGLang's swiglu with alpha adds one to up; without it a limit clamps what SiLU is given.
    activation = (
        Activation(alpha=alpha, limit=_limit(config.gemm1_clamp_limit), beta=1.0)
        if alpha is not None
        else Activation(_KINDS[config.activation], limit=_limit(limit))
    )
    return ExpertMath(
        activation=activation,
        weights_before_input=bool(config.apply_router_weight_on_input),
        interleaved=alpha is not None and getattr(config, "gate_up_interleaved", True),
        biases=bool(getattr(layer, "with_bias", False)),
    )


def routed_scale_of(layer: Any) -> float:
    """By what SGLang's runners on a GPU multiply the sum of a token's experts.

    1.0 where SGLang's router has multiplied its weights by it already.
    """
    if layer.should_fuse_routed_scaling_factor_in_topk:
        return 1.0
    factor = layer.moe_runner_config.routed_scaling_factor
    return 1.0 if factor is None else float(factor)


def _limit(value: float | None) -> float:
    return float("inf") if value is None else float(value)
