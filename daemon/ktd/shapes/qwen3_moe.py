"""Qwen3-MoE, as Qwen3-30B-A3B is published, and the small one that comes with the repository."""

from __future__ import annotations

from typing import Any

from ktd.shapes.model import ModelShape
from ktd.shapes.tensors import GROUP, Form, Tensor, experts, linear, norm

_PARTS = ("gate_proj", "up_proj", "down_proj")


def qwen3_30b_a3b(name: str, layers: int, num_experts: int, *, form: Form) -> ModelShape:
    """Qwen3-30B-A3B, its FP8 checkpoint, or with experts in INT4."""
    config = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "decoder_sparse_step": 1,
        "eos_token_id": 151645,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "initializer_range": 0.02,
        "intermediate_size": 6144,
        "max_position_embeddings": 40960,
        "max_window_layers": 48,
        "mlp_only_layers": [],
        "model_type": "qwen3_moe",
        "moe_intermediate_size": 768,
        "norm_topk_prob": True,
        "num_attention_heads": 32,
        "num_experts": num_experts,
        "num_experts_per_tok": 8,
        "num_hidden_layers": layers,
        "num_key_value_heads": 4,
        "output_router_logits": False,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "router_aux_loss_coef": 0.001,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": 151936,
    }
    return _model(name, config, form=form)


def ktd_tiny(name: str, layers: int, num_experts: int, *, form: Form) -> ModelShape:
    """The shape of models/ktd-tiny."""
    config = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "attention_bias": False,
        "bos_token_id": 0,
        "decoder_sparse_step": 1,
        "eos_token_id": 0,
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 256,
        "intermediate_size": 512,
        "max_position_embeddings": 4096,
        "mlp_only_layers": [],
        "model_type": "qwen3_moe",
        "moe_intermediate_size": 64,
        "norm_topk_prob": True,
        "num_attention_heads": 4,
        "num_experts": num_experts,
        "num_experts_per_tok": 4,
        "num_hidden_layers": layers,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": 2048,
    }
    return _model(name, config, form=form)


def _model(name: str, config: dict[str, Any], *, form: Form) -> ModelShape:
    hidden, head = config["hidden_size"], config["head_dim"]
    queries = config["num_attention_heads"] * head
    keys = config["num_key_value_heads"] * head
    layers, num_experts = config["num_hidden_layers"], config["num_experts"]
    tensors = [Tensor("model.embed_tokens.weight", "BF16", (config["vocab_size"], hidden))]
    for layer in range(layers):
        at = f"model.layers.{layer}"
        tensors += [
            norm(f"{at}.input_layernorm", hidden),
            *linear(f"{at}.self_attn.q_proj", queries, hidden, form=form),
            *linear(f"{at}.self_attn.k_proj", keys, hidden, form=form),
            *linear(f"{at}.self_attn.v_proj", keys, hidden, form=form),
            *linear(f"{at}.self_attn.o_proj", hidden, queries, form=form),
            norm(f"{at}.self_attn.q_norm", head),
            norm(f"{at}.self_attn.k_norm", head),
            norm(f"{at}.post_attention_layernorm", hidden),
            *linear(f"{at}.mlp.gate", num_experts, hidden),
        ]
        width = config["moe_intermediate_size"]
        tensors += experts(
            f"{at}.mlp.experts", num_experts, _PARTS, hidden=hidden, width=width, form=form
        )
    tensors += [norm("model.norm", hidden), *linear("lm_head", config["vocab_size"], hidden)]
    if form is Form.FP8:
        kept = [f"model.layers.{layer}.mlp.gate" for layer in range(layers)]
        config["quantization_config"] = {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "modules_to_not_convert": ["lm_head", *kept],
            "quant_method": "fp8",
            "weight_block_size": [128, 128],
        }
    if form is Form.INT4:
        config["quantization_config"] = _int4_experts()
    return ModelShape(name, layers, num_experts, config, tuple(tensors))


def _int4_experts() -> dict[str, Any]:
    """Of compressed-tensors, as it quantises experts alone."""
    weights = {
        "num_bits": 4,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": GROUP,
        "dynamic": False,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}
        },
        "ignore": ["lm_head", "re:.*self_attn.*", "re:.*mlp\\.gate$"],
    }
