"""Tries whether SGLang's runner leaves out the pairs that no slot computes, which have the id -1.

Tests show that it does for each format, with the releases of SGLang that ktd has run on GPUs with
(tests/sgl/test_gpu_layer.py, test_gpu_repacked.py). With another release each layer tries it on its
own GPU before its first step: a runner that takes -1 for an expert gives wrong answers, not errors.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version as distribution_version
from typing import Any, TypeAlias

import torch

from ktd.version import TRIED_ON_GPUS, untried_on_gpus

# Rows of the trial.
ROWS = 8
# Of what an expert gives. Runners may add in any order, which moves a bf16 sum by 2^-8; a pair that
# was taken for an expert's is as large as what an expert gives.
_TOLERANCE = 0.05

# Dispatch output, ids int32 [T, K] and weights float32 [T, K] to bf16 [T, H].
Compute: TypeAlias = Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]


def release_to_try() -> str:
    """The installed release of SGLang if its runners are to be tried; else empty."""
    release = distribution_version("sglang")
    return release if untried_on_gpus(release) else ""


def refusal(release: str, compute: Compute, dispatch_output: Any, slot: int | None) -> str:
    """Why a layer cannot be served with that release; empty if it can.

    Args:
        release: Of SGLang.
        compute: The layer's slots.
        dispatch_output: What its dispatcher gave: how many rows and columns, and how wide.
        slot: One that holds an expert; None: none does.
    """
    absent, present = trial(compute, dispatch_output, slot)
    if absent <= _TOLERANCE * present:  # false for NaN, too
        return ""
    size = f", where an expert gives {present:.3g}" if slot is not None else ""
    return (
        f"SGLang {release} gives up to {absent:.3g} on this GPU for pairs whose expert has no "
        f"slot{size}, so answers would be wrong; install sglang=={TRIED_ON_GPUS[-1]}, or start "
        "with --device cpu"
    )


def trial(compute: Compute, dispatch_output: Any, slot: int | None) -> tuple[float, float]:
    """The largest that pairs without an expert give, and the largest that one with an expert does.

    The latter is 0 without a slot.
    """
    hidden = dispatch_output.hidden_states
    # Numbers of its own: the model's may be padding, and torch's generator is the sampler's.
    random = torch.Generator(device=hidden.device).manual_seed(0)
    tokens = torch.randn(
        hidden.shape, generator=random, device=hidden.device, dtype=torch.float32
    ).to(hidden.dtype)
    rows = dispatch_output._replace(hidden_states=tokens)
    ids = torch.full_like(dispatch_output.topk_output.topk_ids, -1, dtype=torch.int32)
    weights = torch.ones_like(ids, dtype=torch.float32)
    absent = _largest(compute(rows, ids, weights))
    if slot is None:
        return absent, 0.0
    ids[:, 0] = slot
    several = compute(rows, ids, weights).float()
    weights[:, 1:] = 0
    alone = compute(rows, ids, weights).float()
    # max() of numbers with NaN depends on their order.
    found = torch.tensor([absent, _largest(several - alone)]).max()
    return float(found), _largest(alone)


def _largest(values: torch.Tensor) -> float:
    return float(values.abs().max())
