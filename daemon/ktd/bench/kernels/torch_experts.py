"""The same layer in plain torch: one product after another for each expert that was chosen."""

from __future__ import annotations

import statistics
import time

import numpy as np
import numpy.typing as npt
import torch

from ktd.bench.kernels.calls import Calls
from ktd.bench.kernels.layers import LayerSet
from ktd.experts.weights import ExpertWeights, WeightFormat

_FEWEST = 3
_SETTLE = 0.1  # seconds after which torch's threads have stopped spinning


class TorchExperts:
    """Times torch on bf16 weights, whatever the format of the kernels: torch has no other path.

    Args:
        layers: In bf16.
    """

    def __init__(self, layers: LayerSet) -> None:
        if layers.format is not WeightFormat.BF16:
            raise ValueError(f"torch computes bf16 here, not {layers.format}")
        self._layers = layers.layers

    @torch.inference_mode()
    def median(self, calls: Calls, seconds: float) -> float:
        """Median seconds of calls with the same routing."""
        times: list[float] = []
        began = time.perf_counter()
        while True:
            layer, ids = calls.draw()
            before = time.perf_counter()
            moe_forward(self._layers[layer % len(self._layers)], calls.x, ids)
            times.append(time.perf_counter() - before)
            elapsed = time.perf_counter() - began
            if elapsed > seconds and (len(times) > _FEWEST or elapsed > 2 * seconds):
                break
        time.sleep(_SETTLE)
        return statistics.median(times[1:] or times)


def moe_forward(layer: ExpertWeights, x: torch.Tensor, ids: npt.NDArray[np.int32]) -> torch.Tensor:
    """Float32 ``[T, H]``: each expert on the tokens that chose it, all router weights equal."""
    w13, w2 = layer.w13, layer.w2
    if not (isinstance(w13, torch.Tensor) and isinstance(w2, torch.Tensor)):
        raise TypeError("torch computes experts that lie in one tensor")
    out = torch.zeros(x.shape, dtype=torch.float32)
    for expert in np.unique(ids):
        tokens = torch.from_numpy(np.nonzero((ids == expert).any(axis=1))[0])
        both = x[tokens] @ w13[expert].T
        if layer.w13_bias is not None:
            both += layer.w13_bias[expert]
        if layer.interleaved:
            gate, up = both[:, 0::2], both[:, 1::2]
        else:
            gate, up = both.chunk(2, dim=1)
        act = _activation(layer, gate, up)
        down = act @ w2[expert].T
        if layer.w2_bias is not None:
            down += layer.w2_bias[expert]
        out.index_add_(0, tokens, down.float(), alpha=1 / ids.shape[1])
    return out


def _activation(layer: ExpertWeights, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    rule = layer.activation
    if rule.limit == float("inf"):
        return torch.nn.functional.silu(gate) * up
    gate = gate.clamp(max=rule.limit)
    up = up.clamp(-rule.limit, rule.limit)
    return gate * torch.sigmoid(rule.alpha * gate) * (up + rule.beta)
