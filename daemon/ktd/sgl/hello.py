"""What a rank says of itself when its model is complete; the daemon reads it from the rank file."""

from __future__ import annotations

import logging
import os
from importlib.metadata import version as distribution_version
from typing import TYPE_CHECKING

import torch

from ktd.version import __version__

if TYPE_CHECKING:
    from ktd.sgl.rank import Rank

logger = logging.getLogger(__name__)

_GIB = 1 << 30


def hello_of(rank: Rank, device: str) -> dict[str, object]:
    """The facts that the daemon waits for before it declares the engine ready."""
    layers = rank.layers.values()
    store = sum(layer.num_experts * layer.host_expert_bytes for layer in layers)
    slots = sum(layer.num_slots * layer.expert_bytes for layer in layers)
    if rank.store.mapped:
        logger.info(
            "experts are used from the checkpoint's files: %.2f GiB, and %.2f GiB of copies",
            (store - rank.copied_bytes) / _GIB,
            rank.copied_bytes / _GIB,
        )
    return {
        "ktd": __version__,
        "sglang": distribution_version("sglang"),
        "torch": torch.__version__,
        "rank": rank.rank,
        "world_size": rank.world_size,
        "pid": os.getpid(),
        "isa": rank.pool.isa,
        "threads": rank.pool.threads,
        "device": device,
        "moe_layers_hooked": len(rank.layers),
        "host_store_bytes": store,
        "host_copied_bytes": rank.copied_bytes,
        "slot_bytes": slots,
        **({} if rank.side is None else rank.side.facts()),
    }
