"""One failure that is asked for: where, on which rank, and at which occurrence from now on.

It is a file in the daemon's runtime folder, so that an engine that runs can be told, and one that
is started again has nothing left to meet.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path

_ARMED, _MET = "fault.json", "fault-met.json"


@dataclass(frozen=True)
class Fault:
    """A point of ``tests/faults/points.py``, the ``nth`` time that ``rank`` comes to it."""

    point: str
    rank: int = 0
    nth: int = 1
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def arm(self, folder: Path) -> None:
        """From now on."""
        (folder / _MET).unlink(missing_ok=True)
        written = folder / f"{self.id}.json"
        written.write_text(json.dumps(asdict(self)))
        written.rename(folder / _ARMED)

    def met(self, folder: Path) -> bool:
        """Whether it has happened."""
        return (folder / _MET).exists()


class Watch:
    """The rank's side: counts how often a point is passed since a failure was asked for."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.folder = folder
        self._rank = rank
        self._id = ""
        self._passed = 0

    def due(self, point: str) -> bool:
        """Whether this is the occurrence that was asked for; it never is again."""
        try:
            armed = Fault(**json.loads((self.folder / _ARMED).read_text()))
        except FileNotFoundError:
            return False
        if (armed.point, armed.rank) != (point, self._rank):
            return False
        if armed.id != self._id:
            self._id, self._passed = armed.id, 0
        self._passed += 1
        if self._passed < armed.nth:
            return False
        (self.folder / _ARMED).rename(self.folder / _MET)
        return True
