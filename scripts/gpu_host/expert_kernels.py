"""Seconds of SGLang's fused experts for one layer of a model, all its BF16 experts on the GPU.

    engine.sh run python3 scripts/gpu_host/expert_kernels.py MODEL TOKENS

Every token chooses its experts at random. Prints the median of some calls.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sglang.srt.layers.moe.moe_runner import MoeRunnerConfig
from sglang.srt.layers.moe.topk import StandardTopKOutput

from tests.sgl.gpu_sglang import stand_alone

_WARM, _CALLS = 3, 15


def seconds(model: Path, tokens: int) -> float:
    """Of one layer."""
    config = json.loads((model / "config.json").read_text())
    experts, top_k = config.get("num_experts") or config["num_local_experts"], "num_experts_per_tok"
    hidden, width, top_k = config["hidden_size"], config["moe_intermediate_size"], config[top_k]
    module = stand_alone()
    options = {"dtype": torch.bfloat16, "device": "cuda"}
    x = torch.randn(tokens, hidden, **options)
    w13 = torch.randn(experts, 2 * width, hidden, **options) / hidden**0.5
    w2 = torch.randn(experts, hidden, width, **options) / width**0.5
    logits = torch.randn(tokens, experts, device="cuda")
    weights, ids = torch.softmax(logits, -1).topk(top_k)
    # As a layer with slots calls it: the runner skips what is not here.
    runner = MoeRunnerConfig(
        num_experts=experts + 1,
        num_local_experts=experts,
        hidden_size=hidden,
        intermediate_size_per_partition=width,
        top_k=top_k,
        activation="silu",
        inplace=False,
    )
    chosen = StandardTopKOutput(weights, ids.int(), logits)
    found = []
    for _ in range(_WARM + _CALLS):
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        module.fused_experts(x, w13, w2, chosen, runner)
        after.record()
        after.synchronize()
        found.append(1e-3 * before.elapsed_time(after))
    return statistics.median(found[_WARM:])


if __name__ == "__main__":
    print(seconds(Path(sys.argv[1]), int(sys.argv[2])))
