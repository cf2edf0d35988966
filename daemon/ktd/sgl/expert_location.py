"""Where SGLang keeps the copies of an expert; asked for every tensor of every expert."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def physical_experts(
    original: Callable[..., list[int]],
    metadata: Any,
    layer: int,
    expert: int,
    *more: Any,
    **by: Any,
) -> list[int]:
    """``ExpertLocationMetadata.logical_to_all_physical``, without a Python object for each expert.

    SGLang's takes a row as long as the layer has experts, which is -1 but for a few, into a list.
    What else it is asked, it answers by itself.
    """
    places = metadata.logical_to_all_physical_map_cpu
    if any(more) or any(by.values()) or layer >= places.shape[0]:
        return original(metadata, layer, expert, *more, **by)
    row = places.numpy()[layer, expert]
    found: list[int] = row[row != -1].tolist()
    return found
