"""The one decision per (token, expert) of a step, for layers whose table is in host memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ktd.experts import _native


@dataclass(frozen=True, slots=True)
class Split:
    """Routing of one step, split between slots and pool.

    Attributes:
        slots: int32 ``[tokens, top_k]``: slot that computes the pair, or -1.
        cpu_ids: int32 ``[tokens, top_k]``: expert that the pool computes, or -1.
        slot_pairs: Pairs in slots.
        cpu_pairs: Pairs for the pool.
    """

    slots: torch.Tensor
    cpu_ids: torch.Tensor
    slot_pairs: int
    cpu_pairs: int


def split(ids: torch.Tensor, table: torch.Tensor, counters: int) -> Split:
    """Splits ``ids`` by ``table`` and counts every pair.

    Args:
        ids: int32 or int64 ``[tokens, top_k]``, contiguous; -1 is padding.
        table: int32 ``[experts]``: slot of each expert, or -1.
        counters: Address of u64 ``[experts, 2]``.
    """
    tokens, top_k = ids.shape
    slots = torch.empty((tokens, top_k), dtype=torch.int32)
    cpu_ids = torch.empty((tokens, top_k), dtype=torch.int32)
    slot_pairs, cpu_pairs = _native.split(
        ids.data_ptr(),
        ids.dtype == torch.int64,
        table.data_ptr(),
        slots.data_ptr(),
        cpu_ids.data_ptr(),
        counters,
        tokens,
        top_k,
        table.shape[0],
    )
    return Split(slots, cpu_ids, slot_pairs, cpu_pairs)
