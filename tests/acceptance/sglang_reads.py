"""Reads recordings with SGLang's own code and prints what it found, a line of JSON for each.

A program; its arguments are kinds and files: ``counts FILE passes FILE …``.

A process of its own, because importing SGLang warns, and wants a whole process.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from sglang.srt.eplb.eplb_algorithms import EplbAlgorithm, rebalance_experts
from sglang.srt.eplb.eplb_simulator.reader import read_mode_per_pass
from sglang.srt.eplb.expert_distribution import _convert_per_token_to_global_physical_count


def counts(path: str) -> dict[str, object]:
    """As a start with --init-expert-location does, up to the experts' new places."""
    content = torch.load(path, weights_only=True, map_location="cpu")
    count = content["logical_count"]
    experts = count.shape[-1]
    places, _, _ = rebalance_experts(
        tokens_per_expert=count,
        num_physical_experts=experts,
        num_local_physical_experts=experts // 2,
        num_groups=None,
        num_nodes=1,
        algorithm=EplbAlgorithm.deepseek,
    )
    return {
        "keys": list(content),
        "dtype": str(count.dtype),
        "shape": list(count.shape),
        "per_layer": count.sum(dim=(0, 2)).tolist(),
        "places": places.tolist(),
    }


def passes(path: str) -> dict[str, object]:
    """With the reader of its simulator."""
    found = read_mode_per_pass(Path(path).parent)
    counted = found["global_physical_count_of_forward_pass"]
    return {
        "shape": list(counted.shape),
        "pairs": counted.sum(dim=2).tolist(),
        "ids": found["forward_pass_ids"],
    }


def tokens(path: str) -> dict[str, object]:
    """Fields of a per_token file, and whether each pass's counts are those of its tokens."""
    records = torch.load(path, weights_only=True)["records"]
    agree = [
        torch.equal(
            _convert_per_token_to_global_physical_count(
                len(record["input_ids"]),
                *record["global_physical_count"].shape,
                record["topk_ids_of_layer"],
            ),
            record["global_physical_count"],
        )
        for record in records
    ]
    first = records[0]
    ids = first.pop("topk_ids_of_layer")
    keys = [*first, "topk_ids_of_layer"]
    first.pop("global_physical_count")
    return {
        "agree": agree,
        "keys": keys,
        "first": first,
        "dtype": str(ids.dtype),
        "shape": list(ids.shape),
    }


if __name__ == "__main__":
    readers = {"counts": counts, "passes": passes, "tokens": tokens}
    found = [readers[kind](path) for kind, path in zip(sys.argv[1::2], sys.argv[2::2], strict=True)]
    for one in found:
        print(json.dumps(one))
