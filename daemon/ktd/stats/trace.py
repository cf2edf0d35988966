"""Recorded routing, token by token: for ``ktd simulate``, and for who is chosen together.

``.npz``: integer arrays ``[tokens, layers, top_k]``, each a phase, in the order of the file.
``.pt``: what ``ktd record --mode per_token`` and SGLang's recorder write in that mode, one phase.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ktd.errors import ConfigError
from ktd.stats.torch_file import Tensor, read_torch_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

# Of sglang.srt.model_executor.forward_batch_info.ForwardMode.
_DECODE, _MIXED = 2, 3
# Lists of token ids are inside the pickle: about 6 bytes a token.
_LARGEST_PICKLE = 256 << 20
_BLOCK = 8192  # tokens whose one-hot rows are in memory at once


@dataclass(frozen=True, slots=True, eq=False)
class Phase:
    """A stretch of a trace.

    Attributes:
        name: The array's name, or the file's.
        ids: int16 ``[tokens, layers, top_k]``: chosen experts in the order of the tokens, -1 for
            none.
        decode: bool ``[tokens]``: whether the token was decoded; None where the file does not say.
    """

    name: str
    ids: NDArray[np.int16]
    decode: NDArray[np.bool_] | None = None

    @property
    def tokens(self) -> int:
        """How many tokens it has."""
        return len(self.ids)


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """A recording.

    Attributes:
        phases: In the order of the file, all of the same layers and top-k.
        layers: Layers of the file that ``ids`` speak of: those in which an expert was chosen.
        num_experts: One more than the highest id in it; the model may have more.
    """

    phases: tuple[Phase, ...]
    layers: tuple[int, ...]
    num_experts: int


def read_trace(path: Path) -> Trace:
    """The routing in a file.

    Raises:
        ConfigError: the file is missing, is of no known form, or holds no routing.
    """
    try:
        if path.suffix == ".npz":
            return _trace(path, _from_npz(path))
        if path.suffix == ".pt":
            return _trace(path, [_from_torch(path)])
    except OSError as error:
        raise ConfigError(f"The trace {path} cannot be read ({error.strerror or error}).") from None
    raise ConfigError(f"{path} is neither an .npz nor a .pt file of recorded routing.")


def coactivation(ids: NDArray[np.int16], num_experts: int) -> NDArray[np.int64]:
    """How often two experts were chosen by the same token.

    Args:
        ids: ``[tokens, layers, top_k]``, -1 for none.
        num_experts: E.

    Returns:
        ``[layers, E, E]``, symmetric; an expert with itself is how often it was chosen.
    """
    tokens, layers, _ = ids.shape
    counts = np.zeros((layers, num_experts, num_experts), np.int64)
    for start in range(0, tokens, _BLOCK):
        block = ids[start : start + _BLOCK].astype(np.int64)
        for layer in range(layers):
            # One column more for -1; float32 is exact far beyond a block's tokens.
            chosen = np.zeros((block.shape[0], num_experts + 1), np.float32)
            np.put_along_axis(chosen, block[:, layer], 1.0, axis=1)
            chosen = chosen[:, :num_experts]
            counts[layer] += (chosen.T @ chosen).astype(np.int64)
    return counts


def _from_npz(path: Path) -> list[Phase]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            phases = [Phase(name, _ids(path, name, arrays[name])) for name in arrays.files]
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        raise ConfigError(f"{path} is not an .npz file of arrays: {error}.") from None
    return phases


def _ids(path: Path, name: str, array: NDArray[Any]) -> NDArray[np.int16]:
    if array.ndim != 3 or array.dtype.kind not in "iu":  # noqa: PLR2004  # tokens, layers, top_k
        raise ConfigError(
            f"{path}: array {name!r} is {array.dtype} of shape {list(array.shape)}, but routing is "
            "integers of shape [tokens, layers, top_k]."
        )
    if array.size and not -1 <= int(array.min()) <= int(array.max()) <= np.iinfo(np.int16).max:
        raise ConfigError(
            f"{path}: array {name!r} has ids from {array.min()} to {array.max()}, which are no "
            "experts."
        )
    return array.astype(np.int16)


def _from_torch(path: Path) -> Phase:
    value = read_torch_file(path, largest_pickle=_LARGEST_PICKLE)
    records = value.get("records") if isinstance(value, dict) else None
    if not isinstance(records, list):
        raise ConfigError(f"{path} has no records of passes; record it with --mode per_token.")
    passes: list[NDArray[np.int16]] = []
    decoded: list[NDArray[np.bool_]] = []
    for record in records:
        ids = record.get("topk_ids_of_layer") if isinstance(record, dict) else None
        if not isinstance(ids, Tensor):
            raise ConfigError(
                f"{path} counts passes but has no routing of each token; record it with "
                "--mode per_token."
            )
        array = np.array(ids.values()).reshape(ids.shape)
        passes.append(_ids(path, "topk_ids_of_layer", array).transpose(1, 0, 2))
        decoded.append(_decoded(record, len(passes[-1])))
    if len({one.shape[1:] for one in passes}) > 1:
        raise ConfigError(f"{path} has passes of several shapes: it is not of one model.")
    if not passes:
        raise ConfigError(f"{path} holds no pass: nothing ran while it was recorded.")
    return Phase(path.stem, np.concatenate(passes), np.concatenate(decoded))


def _decoded(record: dict[Any, Any], tokens: int) -> NDArray[np.bool_]:
    """Which tokens of a pass were decoded; in a mixed one, the single ones at its end."""
    decoded = np.full(tokens, record.get("forward_mode") == _DECODE)
    lengths = record.get("extend_seq_lens")
    if record.get("forward_mode") == _MIXED and isinstance(lengths, list):
        single = next((i for i, n in enumerate(reversed(lengths)) if n != 1), len(lengths))
        decoded[tokens - min(single, tokens) :] = True
    return decoded


def _trace(path: Path, phases: Sequence[Phase]) -> Trace:
    shapes = {phase.ids.shape[1:] for phase in phases}
    if len(shapes) > 1:
        raise ConfigError(
            f"{path} has arrays of {' and '.join(str(list(shape)) for shape in sorted(shapes))} "
            "layers and choices; the phases of a trace are of one model."
        )
    used = [(phase.ids >= 0).any(axis=0) for phase in phases if phase.tokens]
    present = np.logical_or.reduce(used) if used else np.zeros((0, 0), bool)
    if not present.any():
        raise ConfigError(f"{path} holds no routing: no expert was chosen in it.")
    # SGLang's recorder has a row for every layer and eight columns, whatever the model has.
    layers = np.flatnonzero(present.any(axis=1))
    columns = np.flatnonzero(present.any(axis=0))
    return Trace(
        phases=tuple(
            Phase(
                phase.name, np.ascontiguousarray(phase.ids[:, layers][:, :, columns]), phase.decode
            )
            for phase in phases
        ),
        layers=tuple(map(int, layers)),
        num_experts=max(int(phase.ids.max(initial=-1)) for phase in phases) + 1,
    )
