"""Applied placements, newest first, and the way back through an operator's changes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import TYPE_CHECKING

from ktd.errors import NothingToUndo
from ktd.placement.model import POLICY_ORIGIN

if TYPE_CHECKING:
    from ktd.placement.model import Experts, ModelShape

_MOST_ENTRIES = 100
# Each holds a whole placement.
_MOST_UNDO_POINTS = 20


class ChangeKind(Enum):
    """Who changes a placement, which decides what undo does about it."""

    OPERATOR = auto()
    # Back to an undo point.
    UNDO = auto()
    # Not walked back by undo.
    POLICY = auto()


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One applied placement; ``time`` in Unix seconds, ``actor`` like ``"uid=1000 pid=42"``."""

    revision: int
    time: float
    origin: str
    moves: int
    bytes: int
    actor: str


@dataclass(frozen=True, slots=True)
class UndoPoint:
    """A placement that an operator's change replaced, and the revision it had."""

    revision: int
    experts: Experts

    @property
    def note(self) -> str:
        """What undo says each time, in one sentence."""
        return (
            f"Undo leads to the placement of revision {self.revision}, whatever a policy has moved "
            "since: it walks operators' changes only."
        )


@dataclass(frozen=True, slots=True)
class History:
    """Immutable, so that a change can be saved and made current in one step.

    Attributes:
        entries: Newest first.
        undo_points: Oldest first; the last one is where the next undo goes.
    """

    entries: tuple[HistoryEntry, ...] = ()
    undo_points: tuple[UndoPoint, ...] = ()

    def changed(self, kind: ChangeKind, entry: HistoryEntry, before: UndoPoint) -> History:
        """With a change of that ``kind``, which replaced ``before``."""
        if kind is ChangeKind.POLICY:
            return self.recorded(entry)
        if kind is ChangeKind.UNDO:
            return self.undone(entry)
        return self.applied(entry, before)

    def recorded(self, entry: HistoryEntry) -> History:
        """With a change that undo does not know: a start, or one that a policy made.

        What one policy does in a row is one entry, so that it never crowds out the operators'.
        """
        rest = self.entries
        if rest and entry.origin.startswith(POLICY_ORIGIN) and rest[0].origin == entry.origin:
            entry = replace(
                entry, moves=entry.moves + rest[0].moves, bytes=entry.bytes + rest[0].bytes
            )
            rest = rest[1:]
        return replace(self, entries=(entry, *rest)[:_MOST_ENTRIES])

    def applied(self, entry: HistoryEntry, before: UndoPoint) -> History:
        """With an operator's change, which undo takes back to ``before``."""
        points = (*self.undo_points, before)[-_MOST_UNDO_POINTS:]
        return replace(self.recorded(entry), undo_points=points)

    def undone(self, entry: HistoryEntry) -> History:
        """With an undo, so that the next one goes a step further back."""
        return replace(self.recorded(entry), undo_points=self.undo_points[:-1])

    def restricted(self, shape: ModelShape) -> History:
        """Without the ways back that an engine of ``shape`` has no slots for."""
        points = self.undo_points
        for index in range(len(points), 0, -1):
            if not shape.fits(points[index - 1].experts):
                points = points[index:]
                break
        return replace(self, undo_points=points)

    def undo_point(self) -> UndoPoint:
        """Where the next undo goes.

        Raises:
            NothingToUndo: no operator has changed the placement since it can be followed back.
        """
        if not self.undo_points:
            raise NothingToUndo(
                "There is nothing to undo: no change of the placement by an operator is left."
            )
        return self.undo_points[-1]

    def undoable(self, revision: int) -> bool:
        """Whether undo can return to the placement that had ``revision``."""
        return any(point.revision == revision for point in self.undo_points)
