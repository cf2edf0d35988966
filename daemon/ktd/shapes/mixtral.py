"""Mixtral-8x7B as it is published."""

from __future__ import annotations

from ktd.shapes.model import ModelShape
from ktd.shapes.tensors import Form, Tensor, experts, linear, norm


def mixtral_8x7b(name: str, layers: int, num_experts: int, *, form: Form) -> ModelShape:
    """Mixtral-8x7B-v0.1."""
    if form is not Form.BF16:
        raise ValueError(f"Mixtral-8x7B is not generated in {form}")
    hidden, vocab, width, keys = 4096, 32000, 14336, 8 * 128
    config = {
        "architectures": ["MixtralForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": width,
        "max_position_embeddings": 32768,
        "model_type": "mixtral",
        "num_attention_heads": 32,
        "num_experts_per_tok": 2,
        "num_hidden_layers": layers,
        "num_key_value_heads": 8,
        "num_local_experts": num_experts,
        "output_router_logits": False,
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0,
        "router_aux_loss_coef": 0.02,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": vocab,
    }
    tensors = [Tensor("model.embed_tokens.weight", "BF16", (vocab, hidden))]
    for layer in range(layers):
        at = f"model.layers.{layer}"
        moe = f"{at}.block_sparse_moe"
        tensors += [
            norm(f"{at}.input_layernorm", hidden),
            *linear(f"{at}.self_attn.q_proj", hidden, hidden),
            *linear(f"{at}.self_attn.k_proj", keys, hidden),
            *linear(f"{at}.self_attn.v_proj", keys, hidden),
            *linear(f"{at}.self_attn.o_proj", hidden, hidden),
            norm(f"{at}.post_attention_layernorm", hidden),
            *linear(f"{moe}.gate", num_experts, hidden),
            *experts(f"{moe}.experts", num_experts, ("w1", "w3", "w2"), hidden=hidden, width=width),
        ]
    tensors += [norm("model.norm", hidden), *linear("lm_head", vocab, hidden)]
    return ModelShape(name, layers, num_experts, config, tuple(tensors))
