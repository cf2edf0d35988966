"""The JSON of `ktd placement get`, and what `ktd placement apply --file` reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ktd.errors import InvalidArgument

if TYPE_CHECKING:
    from ktd.client import LayerPlacement, Placement


def placement_json(placement: Placement) -> dict[str, Any]:
    """``{"revision", "etag", "layers": [{"layer", "num_experts", "slots", "gpu_experts"}]}``."""
    return {
        "revision": placement.revision,
        "etag": placement.etag,
        "layers": [layer_json(layer) for layer in placement.layers],
    }


def layer_json(layer: LayerPlacement) -> dict[str, Any]:
    """One layer of a placement."""
    return {
        "layer": layer.layer,
        "num_experts": layer.num_experts,
        "slots": layer.slots,
        "gpu_experts": list(layer.gpu_experts),
    }


def parse_target(text: str, source: str) -> dict[int, list[int]]:
    """Experts per layer from JSON as `ktd placement get --json` prints it.

    Args:
        text: The JSON.
        source: What to call it in an error.

    Raises:
        InvalidArgument: it is not of that form; the message says where.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InvalidArgument(f"{source} is no JSON: {error}") from error
    layers = value.get("layers") if isinstance(value, Mapping) else None
    if not isinstance(layers, list) or not layers:
        raise InvalidArgument(
            f"{source} has no list 'layers'; 'ktd placement get --json' prints the form"
        )
    target: dict[int, list[int]] = {}
    for position, entry in enumerate(layers):
        where = f"{source}: layers[{position}]"
        layer, experts = _entry(entry, where)
        if layer in target:
            raise InvalidArgument(f"{where} names layer {layer} a second time")
        target[layer] = experts
    return target


def _entry(entry: object, where: str) -> tuple[int, list[int]]:
    if not isinstance(entry, Mapping):
        raise InvalidArgument(f"{where} is no object with 'layer' and 'gpu_experts'")
    layer, experts = entry.get("layer"), entry.get("gpu_experts")
    if not _whole([layer]):
        raise InvalidArgument(f"{where}: 'layer' is {layer!r}, not a layer's index")
    if not isinstance(experts, list) or not _whole(experts):
        raise InvalidArgument(f"{where}: 'gpu_experts' is no list of expert ids")
    return int(layer), sorted(experts)  # type: ignore[arg-type]  # _whole has seen that it is one


def _whole(values: Iterable[object]) -> bool:
    return all(
        isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31
        for value in values
    )
