"""The last committed placement and its history on disk.

One JSON file in the state directory, replaced as a whole (written beside, synced, renamed), so a
daemon that is killed at any moment leaves either the old or the new one.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import structlog

from ktd.placement.history import History, HistoryEntry, UndoPoint
from ktd.placement.model import ModelShape

if TYPE_CHECKING:
    from pathlib import Path

    from ktd.placement.model import Experts

_VERSION = 2
_WHOLE_POINTS = 1  # the version in which each undo point had every layer
_ENTRY = tuple(field.name for field in fields(HistoryEntry))
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class StoredPlacement:
    """What a daemon remembers.

    Attributes:
        model: Says which model this belongs to, for example its path and shape; opaque here.
        update_time: Unix seconds.
    """

    model: str
    shape: ModelShape
    experts: Experts
    revision: int
    origin: str
    update_time: float
    history: History


class PlacementStore:
    """The file ``placement.json`` of a state directory."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "placement.json"

    def load(self) -> StoredPlacement | None:
        """What was saved last, or None; an unreadable file is moved aside, with a warning."""
        try:
            text = self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            self._set_aside(str(error))
            return None
        try:
            return _decoded(json.loads(text))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self._set_aside(f"{type(error).__name__}: {error}")
            return None

    def save(self, stored: StoredPlacement) -> None:
        """Replaces the file and returns when the new one is on the disk.

        Raises:
            OSError: the state directory cannot be written.
        """
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            file.write(_encoded(stored))
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(self._path)
        directory = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _set_aside(self, why: str) -> None:
        aside = self._path.with_suffix(f".unreadable-{int(time.time())}")
        try:
            self._path.rename(aside)
        except OSError as error:
            _log.warning("unreadable placement", path=str(self._path), why=why, move=str(error))
        else:
            _log.warning("unreadable placement", path=str(self._path), why=why, moved_to=str(aside))


def _encoded(stored: StoredPlacement) -> bytes:
    """JSON of everything, made in little time: whoever encodes keeps the event loop waiting.

    Of an undo point only the layers are written, by index, that differ from the next newer one, of
    the newest point from the placement: whole ones were 1.5 MB for 48 layers of 512 experts.
    """
    rest = {
        "version": _VERSION,
        "model": stored.model,
        "shape": asdict(stored.shape),
        "revision": stored.revision,
        "origin": stored.origin,
        "update_time": stored.update_time,
    }
    entries = [{name: getattr(entry, name) for name in _ENTRY} for entry in stored.history.entries]
    points, newer = [], stored.experts
    for point in reversed(stored.history.undo_points):
        layers = ", ".join(
            f'"{index}": {_layer_text(layer)}'
            for index, (layer, other) in enumerate(zip(point.experts, newer, strict=True))
            if layer is not other and layer != other
        )
        points.append(f'{{"revision": {point.revision}, "layers": {{{layers}}}}}')
        newer = point.experts
    experts, history = ", ".join(map(_layer_text, stored.experts)), ", ".join(reversed(points))
    return (
        f'{json.dumps(rest)[:-1]}, "experts": [{experts}], '
        f'"history": {{"entries": {json.dumps(entries)}, "undo_points": [{history}]}}}}\n'
    ).encode()


@lru_cache(maxsize=1 << 10)
def _layer_text(layer: tuple[int, ...]) -> str:
    # A placement shares most layers with the one before.
    return f"[{', '.join(map(str, layer))}]"


def _decoded(raw: dict[str, Any]) -> StoredPlacement:
    if raw["version"] not in (_WHOLE_POINTS, _VERSION):
        raise ValueError(f"version {raw['version']} of the file is not known")
    shape = ModelShape(
        moe_layers=tuple(raw["shape"]["moe_layers"]),
        num_experts=raw["shape"]["num_experts"],
        slots=tuple(raw["shape"]["slots"]),
        expert_bytes=raw["shape"]["expert_bytes"],
        full_stays_full=bool(raw["shape"].get("full_stays_full", False)),
    )
    experts = _experts(raw["experts"])
    if not shape.fits(experts):
        raise ValueError("the placement does not fit its own slots")
    history = History(
        entries=tuple(HistoryEntry(**entry) for entry in raw["history"]["entries"]),
        undo_points=_undo_points(raw["history"]["undo_points"], experts),
    )
    return StoredPlacement(
        model=str(raw["model"]),
        shape=shape,
        experts=experts,
        revision=int(raw["revision"]),
        origin=str(raw["origin"]),
        update_time=float(raw["update_time"]),
        history=history.restricted(shape),
    )


def _undo_points(raw: list[dict[str, Any]], newer: Experts) -> tuple[UndoPoint, ...]:
    found = []
    for point in reversed(raw):
        if "experts" in point:
            newer = _experts(point["experts"])
        else:
            indices = map(int, point["layers"])
            changed = dict(zip(indices, _experts([*point["layers"].values()]), strict=True))
            if not changed.keys() <= set(range(len(newer))):
                raise ValueError("an undo point has layers that the placement does not have")
            newer = tuple(changed.get(index, layer) for index, layer in enumerate(newer))
        found.append(UndoPoint(int(point["revision"]), newer))
    return tuple(reversed(found))


def _experts(raw: list[list[int]]) -> Experts:
    return tuple(tuple(int(expert) for expert in layer) for layer in raw)
