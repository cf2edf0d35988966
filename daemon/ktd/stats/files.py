"""Activation statistics in files, for ``frequency`` before anything was served.

``.pt``: what SGLang's recorder and ``ktd record`` write, a dict with ``logical_count`` of shape
``[buffer, layers, experts]`` or, in modes per_pass and per_token, counts of each pass; also
``[layers, experts]``, and such a tensor by itself. ``.json``:
``{"logical_count": [[…]]}``, such nested lists by themselves, what ``ktd stats --json`` prints, or
a profile of ktd. Layers are all layers of the model, or its MoE layers only.
"""

from __future__ import annotations

import json
from itertools import repeat
from typing import TYPE_CHECKING, Any

import numpy as np

from ktd.errors import ConfigError
from ktd.stats.profile import MARK, ProfileShape, decoded
from ktd.stats.torch_file import Tensor, read_torch_file

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray

_KEY = "logical_count"
# In mode per_token the ids of all tokens are in the pickle, as numbers.
_LARGEST_PICKLE = 256 << 20


def read_counts(path: Path, shape: ProfileShape) -> list[list[float]]:
    """Counts per MoE layer and expert, summed over the buffer.

    Raises:
        ConfigError: the file is missing or unreadable, is not of a known form, or belongs to a
            model of another shape.
    """
    try:
        if path.suffix == ".pt":
            return _checked(path, _from_torch(path, shape))
        if path.suffix == ".json":
            return _checked(path, _from_json(path, shape))
    except OSError as error:
        raise ConfigError(
            f"The statistics file {path} cannot be read ({error.strerror}); check "
            "--init-expert-location."
        ) from None
    raise ConfigError(
        f"{path} is neither a file of activation statistics (.pt, .json, .npz) nor the name of a "
        "profile that `ktd profile save` kept."
    )


def _from_torch(path: Path, shape: ProfileShape) -> list[list[float]]:
    value = read_torch_file(path, largest_pickle=_LARGEST_PICKLE)
    if isinstance(value, dict) and isinstance(value.get("records"), list):
        return _from_records(path, value, shape)
    if isinstance(value, dict):
        if _KEY not in value:
            raise _without_counts(path, value)
        value = value[_KEY]
    if not isinstance(value, Tensor):
        raise ConfigError(f"{path} holds no tensor under {_KEY!r}; record it in mode stat.")
    layers = _matching_layers(path, value.shape, shape)
    counts = _array(value)
    total: list[list[float]] = counts.reshape(-1, *counts.shape[-2:]).sum(axis=0)[layers].tolist()
    return total


def _from_records(path: Path, value: dict[Any, Any], shape: ProfileShape) -> list[list[float]]:
    """Modes per_pass and per_token: counts of each pass, by physical expert."""
    passes = [
        record.get("global_physical_count") if isinstance(record, dict) else None
        for record in value["records"]
    ]
    where = value.get("last_physical_to_logical_map")
    if not passes:
        raise ConfigError(f"{path} holds no pass: nothing ran while it was recorded.")
    if not isinstance(where, Tensor) or len(where.shape) != 2:  # noqa: PLR2004  # layers, experts
        raise ConfigError(f"{path} does not say which experts its counts are of.")
    total = np.zeros(where.shape)
    for counts in passes:
        if not isinstance(counts, Tensor) or counts.shape != where.shape:
            raise ConfigError(f"{path} has a pass without counts of its physical experts.")
        total += _array(counts)
    # Several physical experts may stand for one logical expert, as with SGLang's EPLB.
    places = _array(where)
    # A file may hold anything: what is beyond the physical experts must not size an array.
    inside = (places >= 0) & (places < places.shape[1])
    if places.dtype.kind not in "iu" or not inside.all():
        raise ConfigError(f"{path} does not say which experts its counts are of.")
    logical = np.zeros((len(places), max(int(places.max(initial=0)) + 1, 1)))
    np.add.at(logical, (np.arange(len(places))[:, None], places), total)
    rows: list[list[float]] = logical[_matching_layers(path, logical.shape, shape)].tolist()
    return rows


def _array(tensor: Tensor) -> NDArray[Any]:
    return np.array(tensor.values()).reshape(tensor.shape)


def _from_json(path: Path, shape: ProfileShape) -> list[list[float]]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}.") from None
    if isinstance(value, dict) and MARK in value:
        return _from_profile(path, value, shape)
    if isinstance(value, dict) and isinstance(value.get("layers"), list):
        return _from_report(path, value["layers"], shape)
    if isinstance(value, dict):
        if _KEY not in value:
            raise _without_counts(path, value)
        value = value[_KEY]
    found = _nested_shape(value)
    if found is None:
        raise ConfigError(f"{path}: {_KEY} must be rows of equal length, one per layer.")
    layers = _matching_layers(path, found, shape)
    passes = value if len(found) == 3 else [value]  # noqa: PLR2004  # a leading buffer dimension
    return [
        [float(sum(column)) for column in zip(*(one[layer] for one in passes), strict=True)]
        for layer in layers
    ]


def _from_profile(path: Path, value: dict[str, Any], shape: ProfileShape) -> list[list[float]]:
    try:
        profile = decoded(value)
    except ValueError as error:
        raise ConfigError(f"{path} is not a profile that this version can read: {error}.") from None
    if profile.shape != shape:
        raise ConfigError(
            f"{path} is a profile of a model with {profile.shape} ({profile.model}), but this "
            f"model has {shape}."
        )
    counts: list[list[float]] = profile.counts.sum(axis=0).tolist()
    return counts


def _from_report(path: Path, layers: list[Any], shape: ProfileShape) -> list[list[float]]:
    try:
        rows = {
            int(layer["layer"]): [float(count) for count in layer["counts"]] for layer in layers
        }
    except (TypeError, KeyError, ValueError):
        raise ConfigError(
            f'{path}: each of "layers" needs "layer" and "counts", as `ktd stats --json` prints.'
        ) from None
    widths = {len(row) for row in rows.values()}
    if tuple(sorted(rows)) != shape.moe_layers or widths != {shape.num_experts}:
        raise ConfigError(
            f"{path} has counts for {len(rows)} layers of {_either(widths)} experts, but the "
            f"model has {len(shape.moe_layers)} MoE layers of {shape.num_experts} experts."
        )
    return [rows[layer] for layer in shape.moe_layers]


def _matching_layers(path: Path, found: tuple[int, ...], shape: ProfileShape) -> list[int]:
    """Which rows of the file are the MoE layers, in order."""
    if len(found) in (2, 3) and found[-1] == shape.num_experts:
        if found[-2] == len(shape.moe_layers):
            return list(range(found[-2]))
        if found[-2] == shape.num_layers:
            return list(shape.moe_layers)
    wanted = _either({shape.num_layers, len(shape.moe_layers)})
    raise ConfigError(
        f"{path} has counts of shape {list(found)}, but this model needs "
        f"[{wanted}, {shape.num_experts}], or that behind a buffer dimension: they were recorded "
        "with another model."
    )


def _nested_shape(value: Any) -> tuple[int, ...] | None:
    """The shape of nested lists of numbers, or None if they are ragged or hold something else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return ()
    if not isinstance(value, list) or not value:
        return None
    shapes = {_nested_shape(item) for item in value}
    inner = shapes.pop()
    return None if inner is None or shapes else (len(value), *inner)


def _checked(path: Path, counts: list[list[float]]) -> list[list[float]]:
    for row in counts:
        # Written so that NaN is refused too.
        if not all(map(float.__ge__, map(float, row), repeat(0.0))):
            raise ConfigError(f"{path} has counts that are negative or not a number.")
    return counts


def _without_counts(path: Path, value: dict[Any, Any]) -> ConfigError:
    keys = ", ".join(map(str, list(value)[:5])) or "nothing"
    return ConfigError(
        f"{path} has no {_KEY!r} (it has {keys}); record it with "
        "--expert-distribution-recorder-mode stat."
    )


def _either(numbers: Iterable[int]) -> str:
    return " or ".join(map(str, sorted(numbers))) or "0"
