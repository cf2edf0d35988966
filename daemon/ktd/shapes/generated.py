"""A model folder whose experts exist as a description only: ``ktd_generated.json`` in it.

The engine generates their bytes straight into host memory; the rest of such a folder is a
checkpoint like any other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ktd.errors import ConfigError
from ktd.shapes.catalogue import model_shape
from ktd.shapes.model import ModelShape
from ktd.shapes.tensors import Tensor

MARKER = "ktd_generated.json"
# Of the weights' index, which every model has that was made here; readers look at its map alone.
INDEX = "model.safetensors.index.json"
_MADE_BY = "ktd make-model"
# Other bytes for the same seed need another version.
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Generated:
    """Which model, and of which seed."""

    shape: ModelShape
    seed: int

    def experts(self) -> Iterator[tuple[int, Tensor]]:
        """The tensors that no file has, with their numbers for a :class:`ValueSource`."""
        numbered = enumerate(self.shape.tensors)
        return ((number, tensor) for number, tensor in numbered if tensor.expert)

    def write(self, folder: Path) -> None:
        """Leaves the description in a folder."""
        about = {
            "version": _VERSION,
            "shape": self.shape.name,
            "layers": self.shape.layers,
            "num_experts": self.shape.num_experts,
            "seed": self.seed,
        }
        (folder / MARKER).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def index_metadata(num_bytes: int) -> dict[str, Any]:
    """Metadata of the index: how large the tensors are together, and that they were made here."""
    return {"total_size": num_bytes, "made_by": _MADE_BY}


def weights_are_generated(folder: Path) -> bool:
    """Whether a model's weights were generated, be they written or only described."""
    try:
        metadata: Any = json.loads((folder / INDEX).read_text(encoding="utf-8")).get("metadata")
    except (OSError, ValueError, AttributeError):
        return False
    return isinstance(metadata, dict) and metadata.get("made_by") == _MADE_BY


def read_generated(folder: Path) -> Generated | None:
    """What the folder's description says; None without one.

    Raises:
        ConfigError: It is not one that this version of ktd can follow.
    """
    path = folder / MARKER
    try:
        about: Any = json.loads(path.read_text(encoding="utf-8"))
        version = int(about["version"])
        numbers = int(about["layers"]), int(about["num_experts"]), int(about["seed"])
        name = str(about["shape"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} does not describe generated weights ({error}); make the model again"
        ) from error
    if version != _VERSION:
        raise ConfigError(
            f"{path} has version {version}, and this ktd generates version {_VERSION}; make the "
            "model again"
        )
    layers, num_experts, seed = numbers
    return Generated(model_shape(name, layers=layers, num_experts=num_experts), seed)
