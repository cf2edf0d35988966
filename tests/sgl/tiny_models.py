"""Tiny random checkpoints of many MoE architectures, made with Transformers, and their reference.

Sizes are awkward on purpose: expert widths are no multiple of a vector, some layers are dense.
SGLang's kernels on a GPU want heads of at least 64, and three layers with experts are asked for.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.device import at_full_precision
from tests.live import MODEL

VOCABULARY = 2048  # ktd-tiny's tokenizer goes with every checkpoint
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


_ON_GPU: dict[str, Any] = {"hidden_size": 256, "head_dim": 64}
_ON_GPU_WITH_DENSE_LAYER = _ON_GPU | {"num_hidden_layers": 4}


@dataclass(frozen=True, slots=True)
class TinyModel:
    """One recipe.

    Attributes:
        model_type: Transformers' name of the configuration.
        options: What differs from the common options.
        moe_layers: Layers with experts.
        num_experts: Per layer.
        architecture: Name in config.json, if it is not the one that Transformers writes.
        on_gpu: What differs for a GPU.
    """

    model_type: str
    options: dict[str, Any]
    moe_layers: tuple[int, ...] = (0, 1, 2)
    num_experts: int = 8
    architecture: str | None = None
    on_gpu: Mapping[str, Any] = field(default_factory=lambda: _ON_GPU)

    def for_gpu(self) -> TinyModel:
        """The same model with sizes that SGLang's kernels on a GPU take."""
        options = self.options | self.on_gpu
        layers = options.get("num_hidden_layers", _COMMON["num_hidden_layers"])
        return replace(self, options=options, moe_layers=tuple(range(self.moe_layers[0], layers)))


MODELS = {
    "qwen3_moe": TinyModel(
        "qwen3_moe",
        {
            "head_dim": 16,
            "intermediate_size": 96,
            "moe_intermediate_size": 40,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "norm_topk_prob": True,
        },
    ),
    "qwen3_moe_dense_layer": TinyModel(
        "qwen3_moe",
        {
            "head_dim": 16,
            "intermediate_size": 96,
            "moe_intermediate_size": 72,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "norm_topk_prob": True,
            "mlp_only_layers": [1],
        },
        moe_layers=(0, 2),
    ),
    # Wide enough for a block of 128 and a part of one, and for groups of 32.
    "qwen3_moe_quantised": TinyModel(
        "qwen3_moe",
        {
            "hidden_size": 192,
            "num_hidden_layers": 2,
            "head_dim": 16,
            "intermediate_size": 96,
            "moe_intermediate_size": 256,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "norm_topk_prob": True,
        },
        moe_layers=(0, 1),
    ),
    # What SGLang's Marlin kernels and its attention on GPUs take.
    "qwen3_moe_gpu": TinyModel(
        "qwen3_moe",
        {
            "hidden_size": 256,
            "num_hidden_layers": 2,
            "head_dim": 64,
            "intermediate_size": 128,
            "moe_intermediate_size": 256,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "norm_topk_prob": True,
        },
        moe_layers=(0, 1),
    ),
    "mixtral": TinyModel(
        "mixtral",
        {"intermediate_size": 72, "num_local_experts": 8, "num_experts_per_tok": 2},
    ),
    "olmoe": TinyModel(
        "olmoe",
        {
            "num_key_value_heads": 4,
            "intermediate_size": 72,
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "norm_topk_prob": False,
        },
    ),
    "qwen2_moe": TinyModel(
        "qwen2_moe",
        {
            "intermediate_size": 96,
            "moe_intermediate_size": 72,
            "shared_expert_intermediate_size": 56,
            "num_experts": 8,
            "num_experts_per_tok": 2,
        },
    ),
    "phimoe": TinyModel(
        "phimoe",
        {"intermediate_size": 72, "num_local_experts": 8, "num_experts_per_tok": 2},
        architecture="PhiMoEForCausalLM",
    ),
    "granitemoe": TinyModel(
        "granitemoe",
        {
            "intermediate_size": 72,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "tie_word_embeddings": True,
            # As IBM publishes them; without, one near-tie of a router decides four texts.
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "logits_scaling": 8.0,
        },
        # By itself it scales no scores: with wide heads every rounding would turn some of them.
        on_gpu=_ON_GPU | {"attention_multiplier": 0.125},
    ),
    "glm4_moe": TinyModel(
        "glm4_moe",
        {
            "head_dim": 16,
            "intermediate_size": 96,
            "moe_intermediate_size": 72,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
            "routed_scaling_factor": 2.5,
        },
        moe_layers=(1, 2),
        on_gpu=_ON_GPU_WITH_DENSE_LAYER,
    ),
    # Hidden size and width are padded for a GPU; layers with a window and without alternate.
    "gpt_oss": TinyModel(
        "gpt_oss",
        {
            "hidden_size": 192,
            "head_dim": 64,
            "intermediate_size": 96,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "swiglu_limit": 7.0,
        },
        on_gpu={},
    ),
    "qwen3_next": TinyModel(
        "qwen3_next",
        {
            "num_hidden_layers": 4,
            "head_dim": 64,
            "intermediate_size": 96,
            "moe_intermediate_size": 72,
            "shared_expert_intermediate_size": 56,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "norm_topk_prob": True,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 64,
            "linear_value_head_dim": 64,
        },
        moe_layers=(0, 1, 2, 3),
        on_gpu={"hidden_size": 256, "head_dim": 256, "linear_key_head_dim": 128}
        | {"linear_value_head_dim": 128},
    ),
}


def build(name: str, folder: Path, *, spread: float = 0.25, for_gpu: bool = False) -> TinyModel:
    """Writes the checkpoint and ktd-tiny's tokenizer into ``folder``.

    Weights are wide enough that the experts decide the log-probabilities.
    """
    import json

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    recipe = MODELS[name].for_gpu() if for_gpu else MODELS[name]
    config = AutoConfig.for_model(recipe.model_type, **(_COMMON | recipe.options))
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.dim() > 1:
                fan_in = parameter.shape[-1]
                scale = spread if "embed" in key else 1.6 / fan_in**0.5
                parameter.normal_(0.0, scale)
            elif "norm" in key:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, 0.05)
    model.to(torch.bfloat16).save_pretrained(folder)
    path = folder / "config.json"
    written = json.loads(path.read_text())
    if recipe.architecture is not None:
        written["architectures"] = [recipe.architecture]
    if recipe.model_type == "qwen3_next":
        # As the checkpoint on the hub has it; SGLang does not read the layers' types that newer
        # releases of Transformers write instead.
        written["full_attention_interval"] = 4
    path.write_text(json.dumps(written))
    for file in MODEL.glob("*token*"):
        shutil.copy(file, folder)
    del model
    gc.collect()
    return recipe


def reference(
    folder: Path,
    texts: Sequence[Sequence[int]],
    change: Callable[[Any], None] | None = None,
    *,
    dtype: str = "float32",
) -> list[list[float]]:
    """Log-probability of every token but the first, by Transformers on the device of the tests."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, dtype),
        attn_implementation="eager",
        experts_implementation="eager",
    ).eval()
    if change is not None:
        change(model)
    at_full_precision(model)
    found = []
    with torch.inference_mode():
        for ids in texts:
            given = torch.tensor([ids], device=model.device)
            logits = model(given).logits[0].float().log_softmax(-1).cpu()
            found.append(logits[:-1].gather(1, torch.tensor(ids)[1:, None])[:, 0].tolist())
    del model
    gc.collect()
    return found


def without_experts(model: Any) -> None:
    """Silences the routed experts: what a reference looks like that does not see them."""
    import torch

    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if ".experts." in key and ("down_proj" in key or ".w2" in key):
                parameter.zero_()
            if "output_linear" in key:
                parameter.zero_()


def some_texts(count: int = 4, length: int = 60, *, seed: int = 3) -> list[list[int]]:
    """Random token ids, the same ones each time."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (count, length), generator=generator).tolist()
