"""What a token takes in the KV cache, from a model's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_BF16_BYTES = 2


@dataclass(frozen=True, slots=True)
class KvCache:
    """The shape of one token's cache; ``latent`` is above 0 for multi-head latent attention.

    Layers with a window or without attention are counted like the others, so the sum is an upper
    bound.
    """

    num_layers: int
    kv_heads: int
    head_dim: int
    latent: int = 0

    def bytes_per_token(self, ranks: int) -> int:
        """Over all ranks: heads are divided, but each rank has at least one; latents are copied."""
        if self.latent:
            return self.num_layers * self.latent * ranks * _BF16_BYTES
        heads = max(self.kv_heads, ranks)
        return 2 * self.num_layers * heads * self.head_dim * _BF16_BYTES


def kv_cache_of(config: Mapping[str, Any], num_layers: int) -> KvCache:
    """From the part of ``config.json`` about the language model; zeros where it does not say."""
    heads = int(config.get("num_attention_heads") or 0)
    hidden = int(config.get("hidden_size") or 0)
    latent = int(config.get("kv_lora_rank") or 0)
    return KvCache(
        num_layers=num_layers,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or (hidden // heads if heads else 0)),
        latent=latent + int(config.get("qk_rope_head_dim") or 0) if latent else 0,
    )
