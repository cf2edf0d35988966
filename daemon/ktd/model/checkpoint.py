"""The weight files of a model folder: complete or not, and what is in them. Reads headers only.

Format: https://huggingface.co/docs/safetensors (8 bytes little-endian length, JSON header, data).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ktd.errors import ConfigError, ModelUnsupported
from ktd.shapes.generated import read_generated

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_LENGTH_BYTES = 8
# Larger headers than the format allows are no headers.
_MAX_HEADER = 100 << 20
# GraniteMoE keeps all experts of a layer in two tensors that do not say so.
_EXPERT = re.compile(r"\.experts?\.|\.block_sparse_moe\.(in|out)put_linear\.")
_PICKLED = ("*.bin", "*.pt", "*.pth")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What the headers say.

    Attributes:
        files: Weight files, by name.
        expert_dtypes: safetensors names of the types of the experts' tensors, ``("BF16",)``.
        expert_bytes: Bytes of all tensors of experts.
        other_dtypes: Types of the rest.
        other_bytes: Bytes of the rest.
        has_head: Whether there is an output head of its own, ``lm_head.weight``.
    """

    files: tuple[str, ...]
    expert_dtypes: tuple[str, ...]
    expert_bytes: int
    other_dtypes: tuple[str, ...]
    other_bytes: int
    has_head: bool


def read_checkpoint(folder: Path) -> Checkpoint:
    """Reads every header and compares it with its file's size.

    Raises:
        ModelUnsupported: files are missing or shorter than they should be (a download that did
            not finish), or there are no safetensors files.
    """
    weight_map = _weight_map(folder)
    names = sorted(set(weight_map.values())) if weight_map else _unindexed(folder)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ModelUnsupported(
            f"{folder} is half-downloaded: {len(missing)} of {len(names)} weight files are "
            f"missing, for example {missing[0]}; download it again, which resumes."
        )
    tensors: dict[str, tuple[str, int]] = {}
    for name in names:
        tensors |= _header(folder / name)
    absent = sorted(set(weight_map) - set(tensors))
    if absent:
        raise ModelUnsupported(
            f"{folder} is half-downloaded: the index names tensor {absent[0]}, and "
            f"{weight_map[absent[0]]} does not have it; download it again."
        )
    tensors |= _generated(folder)
    experts = {name: value for name, value in tensors.items() if _EXPERT.search(name)}
    others = {name: value for name, value in tensors.items() if name not in experts}
    return Checkpoint(
        files=tuple(names),
        expert_dtypes=tuple(sorted({dtype for dtype, _ in experts.values()})),
        expert_bytes=sum(size for _, size in experts.values()),
        other_dtypes=tuple(sorted({dtype for dtype, _ in others.values()})),
        other_bytes=sum(size for _, size in others.values()),
        has_head="lm_head.weight" in tensors,
    )


def _generated(folder: Path) -> dict[str, tuple[str, int]]:
    """What the engine will generate instead of reading it (ktd make-model)."""
    try:
        generated = read_generated(folder)
    except ConfigError as error:
        raise ModelUnsupported(f"{error}.") from error
    if generated is None:
        return {}
    return {tensor.name: (tensor.dtype, tensor.num_bytes) for _, tensor in generated.experts()}


def _weight_map(folder: Path) -> Mapping[str, str]:
    path = folder / _INDEX
    if not path.is_file():
        return {}
    try:
        weight_map = json.loads(path.read_text())["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelUnsupported(
            f"{path} is not an index of weights ({type(error).__name__}); download it again."
        ) from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelUnsupported(f"{path} names no weights; download it again.")
    outside = [name for name in weight_map.values() if Path(str(name)).name != name]
    if outside:
        raise ModelUnsupported(f"{path} names {outside[0]!r}, which is not a file beside it.")
    return weight_map


def _unindexed(folder: Path) -> list[str]:
    if (folder / _SINGLE).is_file():
        return [_SINGLE]
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    if names:
        return names
    if any(next(folder.glob(pattern), None) for pattern in _PICKLED):
        raise ModelUnsupported(
            f"{folder} has pickled weights, which ktd does not read; convert them to safetensors."
        )
    raise ModelUnsupported(
        f"{folder} has no weights: no {_SINGLE} and no {_INDEX}; is it half-downloaded?"
    )


def _header(path: Path) -> dict[str, tuple[str, int]]:
    """Name → (dtype, bytes) of the tensors in one file, which is as long as its header says."""
    actual = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(_LENGTH_BYTES)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < _LENGTH_BYTES or (length > actual and length <= _MAX_HEADER):
            raise _short(path, actual, _LENGTH_BYTES + length)
        raw = file.read(length) if length <= _MAX_HEADER else b""
    try:
        header: dict[str, Any] = json.loads(raw)
        header.pop("__metadata__", None)
        tensors = {
            name: (str(entry["dtype"]), entry["data_offsets"][1] - entry["data_offsets"][0])
            for name, entry in header.items()
        }
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ModelUnsupported(
            f"{path} is not a safetensors file: its header cannot be read; download it again."
        ) from error
    expected = _LENGTH_BYTES + length + end
    if actual < expected:
        raise _short(path, actual, expected)
    return tensors


def _short(path: Path, actual: int, expected: int) -> ModelUnsupported:
    return ModelUnsupported(
        f"{path.parent} is half-downloaded: {path.name} has {actual:,} of {expected:,} bytes; "
        "download it again, which resumes."
    )
