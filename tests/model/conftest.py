"""Model folders made on the spot: a config and safetensors files with headers and zeros."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 8,
    "moe_intermediate_size": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 2,
    "tie_word_embeddings": False,
    "max_position_embeddings": 64,
}
EXPERT_BYTES = 3 * 8 * 4 * 2


def write_safetensors(path: Path, tensors: dict[str, tuple[str, list[int]]], cut: int = 0) -> None:
    """Writes tensors of zeros; ``cut`` bytes are missing at the end."""
    widths = {"BF16": 2, "F16": 2, "F32": 4, "F8_E4M3": 1, "I32": 4, "U8": 1}
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape) in tensors.items():
        size = widths[dtype]
        for length in shape:
            size *= length
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    raw = json.dumps(header).encode()
    data = len(raw).to_bytes(8, "little") + raw + bytes(offset)
    path.write_bytes(data[: len(data) - cut])


def tensors_of(layer: int, dtype: str = "BF16") -> dict[str, tuple[str, list[int]]]:
    """The experts of one layer."""
    return {
        f"model.layers.{layer}.mlp.experts.{expert}.{part}_proj.weight": (
            dtype,
            [8, 4] if part == "down" else [4, 8],
        )
        for expert in range(4)
        for part in ("gate", "up", "down")
    }


class Folder:
    """A model folder that a test changes before it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = dict(CONFIG)
        path.mkdir()
        write_safetensors(path / "a.safetensors", tensors_of(0))
        write_safetensors(
            path / "b.safetensors",
            {**tensors_of(1), "lm_head.weight": ("BF16", [10, 8])},
        )
        self.index()

    def index(self, **more: str) -> None:
        """Writes the index over both files."""
        names = dict.fromkeys(tensors_of(0), "a.safetensors")
        names |= dict.fromkeys((*tensors_of(1), "lm_head.weight"), "b.safetensors")
        text = json.dumps({"weight_map": {**names, **more}})
        (self.path / "model.safetensors.index.json").write_text(text)

    def written(self, **changes) -> Path:
        """Writes the config with these changes; None removes a key."""
        config = {**self.config, **changes}
        config = {key: value for key, value in config.items() if value is not None}
        (self.path / "config.json").write_text(json.dumps(config))
        return self.path


@pytest.fixture
def folder(tmp_path):
    """A complete, supported model."""
    return Folder(tmp_path / "model")
