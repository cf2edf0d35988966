"""What a policy did lately, so that it can explain itself."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ktd.policy.base import Choice

_KEPT = 500


@dataclass(frozen=True, slots=True)
class Entry:
    """One move.

    Attributes:
        time: Unix seconds.
        policy: That made it.
        swap: Id of the swap that carried it out.
        layer: Model layer.
        choice: With its figures; ``choice.layer`` is the position among the MoE layers.
        outcome: Name of the swap's state; empty while it runs.
        why: Empty, or why it was not an ordinary decision.
    """

    time: float
    policy: str
    swap: str
    layer: int
    choice: Choice
    outcome: str = ""
    why: str = ""


class Journal:
    """The last moves, newest first."""

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque(maxlen=_KEPT)
        # Moves and roll-backs since the daemon's start.
        self.moves = 0
        self.rollbacks = 0

    def add(self, entries: Sequence[Entry]) -> None:
        """One swap's moves."""
        self.moves += len(entries)
        self._entries.extendleft(reversed(entries))

    def ended(self, swap: str, outcome: str) -> None:
        """A swap has ended."""
        for position, entry in enumerate(self._entries):
            if entry.swap == swap:
                self._entries[position] = replace(entry, outcome=outcome)

    def last(self, most: int) -> list[Entry]:
        """At most so many, newest first."""
        return list(self._entries)[:most]
