"""A random MoE layer, a step of routing on it, and what torch makes of them in float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class MoeStep:
    """One layer's weights and one call: bf16 weights and x, int32 ids, float32 weights."""

    w13: torch.Tensor
    w2: torch.Tensor
    x: torch.Tensor
    ids: torch.Tensor
    weights: torch.Tensor

    @property
    def experts(self):
        """The weights as the pool takes them."""
        from ktd.experts.weights import ExpertWeights, WeightFormat  # needs torch

        return ExpertWeights(WeightFormat.BF16, self.w13, self.w2)

    def reference(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Torch's float32 result, and how far a kernel may be from it.

        Both round the activation to bf16, from float32 sums added in different orders, so each may
        round to a neighbour: one unit in the last of 8 places, 2^-7 of the magnitude at most.
        """
        import torch  # the fixture has skipped by now where it is absent

        out = torch.zeros(self.x.shape, dtype=torch.float32)
        bound = torch.full_like(out, 1e-6)
        inner = self.w2.shape[2]
        for token, top_k in enumerate(self.ids.tolist()):
            for k, expert in enumerate(top_k):
                if expert < 0:
                    continue
                both = self.w13[expert].float() @ self.x[token].float()
                act = torch.nn.functional.silu(both[:inner]) * both[inner:]
                act = act.bfloat16().float()
                w2 = self.w2[expert].float()
                out[token] += self.weights[token, k] * (w2 @ act)
                bound[token] += self.weights[token, k] * 2**-7 * (w2.abs() @ act.abs())
        return out, bound


@pytest.fixture(name="moe_step")
def moe_step_fixture():
    """Makes MoeStep(experts, hidden, intermediate, tokens, top_k); token 0 has one -1."""
    torch = pytest.importorskip("torch", reason="the Python face of the pool takes torch tensors")

    def make(experts, hidden, intermediate, tokens, top_k):
        random = torch.Generator().manual_seed(experts * hidden + tokens)

        def normal(*shape):
            return torch.randn(*shape, generator=random)

        chosen = [torch.randperm(experts, generator=random)[:top_k] for _ in range(tokens)]
        ids = torch.stack(chosen).int()
        ids[0, top_k // 2] = -1
        return MoeStep(
            w13=(normal(experts, 2 * intermediate, hidden) / hidden**0.5).bfloat16(),
            w2=(normal(experts, hidden, intermediate) * 0.1).bfloat16(),
            x=normal(tokens, hidden).bfloat16(),
            ids=ids,
            weights=torch.rand(tokens, top_k, generator=random),
        )

    return make
