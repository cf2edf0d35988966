"""What tokens take in the KV cache, from a model's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_BF16_BYTES = 2
_FLOAT32_BYTES = 4
_LINEAR = "linear_attention"
# SGLang divides the memory between states and the KV cache: so much for each byte of that one.
_STATE_SHARE = 0.9
# It serves nobody with fewer: a request has three, for prefixes too, and one is padding.
_LEAST_STATES = 4


@dataclass(frozen=True, slots=True)
class KvCache:
    """The shape of one token's cache; ``latent`` is above 0 for multi-head latent attention.

    Layers with a window are counted like the others, so the sum is an upper bound.

    Attributes:
        num_layers: With attention over the tokens before.
        state_bytes: What a request takes in the layers with a state instead, over all ranks.
    """

    num_layers: int
    kv_heads: int
    head_dim: int
    latent: int = 0
    state_bytes: int = 0

    def bytes_per_token(self, ranks: int) -> int:
        """Over all ranks: heads are divided, but each rank has at least one; latents are copied."""
        if self.latent:
            return self.num_layers * self.latent * ranks * _BF16_BYTES
        heads = max(self.kv_heads, ranks)
        return 2 * self.num_layers * heads * self.head_dim * _BF16_BYTES

    def bytes_for(self, tokens: int, ranks: int, *, value_bytes: int = _BF16_BYTES) -> int:
        """Of a cache of ``tokens``, over all ranks, with the states that SGLang keeps beside it."""
        kept = tokens * self.bytes_per_token(ranks) * value_bytes // _BF16_BYTES
        if not self.state_bytes:
            return kept
        states = max(int(kept * _STATE_SHARE), _LEAST_STATES * self.state_bytes)
        return max(kept, int(states / _STATE_SHARE)) + states


def kv_cache_of(config: Mapping[str, Any], num_layers: int) -> KvCache:
    """From the part of ``config.json`` about the language model; zeros where it does not say."""
    heads = int(config.get("num_attention_heads") or 0)
    hidden = int(config.get("hidden_size") or 0)
    latent = int(config.get("kv_lora_rank") or 0)
    with_state = _layers_with_state(config, num_layers)
    return KvCache(
        num_layers=num_layers - with_state,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or (hidden // heads if heads else 0)),
        latent=latent + int(config.get("qk_rope_head_dim") or 0) if latent else 0,
        state_bytes=with_state * _state_bytes(config),
    )


def _layers_with_state(config: Mapping[str, Any], num_layers: int) -> int:
    """Those of Qwen3-Next's kind: all but every ``full_attention_interval``-th."""
    types = config.get("layer_types")
    if types:
        return sum(kind == _LINEAR for kind in types[:num_layers])
    interval = int(config.get("full_attention_interval") or 0)
    return num_layers - num_layers // interval if interval else 0


def _state_bytes(config: Mapping[str, Any]) -> int:
    """Of a layer: a float32 matrix for each head, and the inputs that its convolution looks at."""
    heads, key_heads = (
        int(config.get(f"linear_num_{name}_heads") or 0) for name in ("value", "key")
    )
    width, key_width = (
        int(config.get(f"linear_{name}_head_dim") or 0) for name in ("value", "key")
    )
    looks_back = max(0, int(config.get("linear_conv_kernel_dim") or 0) - 1)
    inputs = heads * width + 2 * key_heads * key_width
    return heads * width * key_width * _FLOAT32_BYTES + inputs * looks_back * _BF16_BYTES
