"""Operators that SGLang has for GPUs only, in torch, for models that need one on a host without."""

from __future__ import annotations

import torch

GATE_SIGMOID_MUL_ADD = "sglang.kernels.ops.elementwise.elementwise.fused_gate_sigmoid_mul_add"


def gate_sigmoid_mul_add(
    hidden_states: torch.Tensor,
    gate_weight: torch.Tensor,
    shared_output: torch.Tensor,
    final_hidden_states: torch.Tensor,
) -> None:
    """Adds the gated shared expert of Qwen2-MoE to the routed experts' output, in place.

    ``final += sigmoid(hidden · gate) * shared``, in float32 as SGLang's kernel does it.

    Args:
        hidden_states: ``[tokens, hidden]``.
        gate_weight: ``[hidden]``.
        shared_output: ``[tokens, hidden]``.
        final_hidden_states: ``[tokens, hidden]``, written.
    """
    gate = torch.sigmoid(hidden_states.float() @ gate_weight.float())
    added = torch.addcmul(final_hidden_states.float(), gate[:, None], shared_output.float())
    final_hidden_states.copy_(added)
