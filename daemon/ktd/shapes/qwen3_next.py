"""Qwen3-Next-80B-A3B, in bf16 and as its FP8 checkpoint, without the layer that guesses ahead."""

from __future__ import annotations

from typing import Any

from ktd.shapes.model import ModelShape
from ktd.shapes.tensors import Form, Tensor, Values, experts, linear, norm

_PARTS = ("gate_proj", "up_proj", "down_proj")


def qwen3_next_80b_a3b(name: str, layers: int, num_experts: int, *, form: Form) -> ModelShape:
    """The published model, or its FP8 checkpoint: all linear layers but the small ones in FP8."""
    config: dict[str, Any] = {
        "architectures": ["Qwen3NextForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "decoder_sparse_step": 1,
        "eos_token_id": 151645,
        "full_attention_interval": 4,
        "head_dim": 256,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "initializer_range": 0.02,
        "intermediate_size": 5120,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "linear_value_head_dim": 128,
        "max_position_embeddings": 262144,
        "mlp_only_layers": [],
        "model_type": "qwen3_next",
        "moe_intermediate_size": 512,
        "norm_topk_prob": True,
        "num_attention_heads": 16,
        "num_experts": num_experts,
        "num_experts_per_tok": 10,
        "num_hidden_layers": layers,
        "num_key_value_heads": 2,
        "output_router_logits": False,
        "partial_rotary_factor": 0.25,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 10000000,
        "router_aux_loss_coef": 0.001,
        "shared_expert_intermediate_size": 512,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": 151936,
    }
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    tensors = [Tensor("model.embed_tokens.weight", "BF16", (vocab, hidden))]
    kept = ["lm_head", "model.embed_tokens"]
    for layer in range(layers):
        at = f"model.layers.{layer}"
        tensors.append(_norm(f"{at}.input_layernorm", hidden))
        if (layer + 1) % config["full_attention_interval"] == 0:
            tensors += _full_attention(f"{at}.self_attn", config, form=form)
        else:
            tensors += _linear_attention(f"{at}.linear_attn", config, form=form)
            kept += [f"{at}.linear_attn.conv1d", f"{at}.linear_attn.in_proj_ba"]
        tensors.append(_norm(f"{at}.post_attention_layernorm", hidden))
        tensors += _mlp(f"{at}.mlp", config, form=form)
        kept += [f"{at}.mlp.gate", f"{at}.mlp.shared_expert_gate"]
    tensors += [_norm("model.norm", hidden), *linear("lm_head", vocab, hidden)]
    if form is Form.INT4:
        raise ValueError("Qwen3-Next is not generated in INT4")
    if form is Form.FP8:
        config["quantization_config"] = {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "modules_to_not_convert": kept,
            "quant_method": "fp8",
            "weight_block_size": [128, 128],
        }
    return ModelShape(name, layers, num_experts, config, tuple(tensors))


def _norm(name: str, size: int) -> Tensor:
    # This model's weights are added to one.
    return norm(name, size, Values.ZEROS)


def _full_attention(at: str, config: dict[str, Any], *, form: Form) -> list[Tensor]:
    hidden, head = config["hidden_size"], config["head_dim"]
    queries = config["num_attention_heads"] * head
    keys = config["num_key_value_heads"] * head
    return [
        *linear(f"{at}.q_proj", 2 * queries, hidden, form=form),  # with the output's gate
        *linear(f"{at}.k_proj", keys, hidden, form=form),
        *linear(f"{at}.v_proj", keys, hidden, form=form),
        *linear(f"{at}.o_proj", hidden, queries, form=form),
        _norm(f"{at}.q_norm", head),
        _norm(f"{at}.k_norm", head),
    ]


def _linear_attention(at: str, config: dict[str, Any], *, form: Form) -> list[Tensor]:
    hidden, heads = config["hidden_size"], config["linear_num_value_heads"]
    keys = config["linear_num_key_heads"] * config["linear_key_head_dim"]
    values = heads * config["linear_value_head_dim"]
    channels, taps = 2 * keys + values, config["linear_conv_kernel_dim"]
    return [
        *linear(f"{at}.in_proj_qkvz", channels + values, hidden, form=form),
        *linear(f"{at}.in_proj_ba", 2 * heads, hidden),
        Tensor(f"{at}.conv1d.weight", "BF16", (channels, 1, taps)),
        Tensor(f"{at}.dt_bias", "BF16", (heads,), Values.ONES),
        Tensor(f"{at}.A_log", "BF16", (heads,), Values.ZEROS),
        norm(f"{at}.norm", config["linear_value_head_dim"]),
        *linear(f"{at}.out_proj", hidden, values, form=form),
    ]


def _mlp(at: str, config: dict[str, Any], *, form: Form) -> list[Tensor]:
    hidden, shared = config["hidden_size"], config["shared_expert_intermediate_size"]
    count, width = config["num_experts"], config["moe_intermediate_size"]
    return [
        *linear(f"{at}.gate", count, hidden),
        *linear(f"{at}.shared_expert.gate_proj", shared, hidden, form=form),
        *linear(f"{at}.shared_expert.up_proj", shared, hidden, form=form),
        *linear(f"{at}.shared_expert.down_proj", hidden, shared, form=form),
        *linear(f"{at}.shared_expert_gate", 1, hidden),
        *experts(f"{at}.experts", count, _PARTS, hidden=hidden, width=width, form=form),
    ]
