"""The current placement with its revision, etag and history, in memory and in the store."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ktd.errors import EtagRequired, PlacementStale
from ktd.placement.history import ChangeKind, History, HistoryEntry, UndoPoint
from ktd.placement.model import Placement, bytes_of
from ktd.placement.store import StoredPlacement

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ktd.placement.model import Experts, ModelShape, Move
    from ktd.placement.store import PlacementStore

# ``HistoryEntry.actor`` of what nobody asked for.
DAEMON = "daemon"
# What a daemon that is killed forgets of a policy's changes at most; it would make them again.
_POLICY_SAVE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Change:
    """What a placement is to become, and who wants that: ``actor`` like ``"uid=1000 pid=42"``.

    ``note`` is a sentence that the operator should read, or empty.
    """

    experts: Experts
    origin: str
    actor: str
    kind: ChangeKind = ChangeKind.OPERATOR
    note: str = ""


class Ledger:
    """Numbers and remembers committed placements; reads the store once, when it is made.

    Args:
        store: Where they survive the daemon, or None.
        model: Says which model the placements belong to; one stored for another is not restored.
        clock: Unix seconds.
        on_unsaved: Called with one sentence when saving failed, with None when it works again.
    """

    def __init__(
        self,
        store: PlacementStore | None,
        model: str,
        clock: Callable[[], float],
        on_unsaved: Callable[[str | None], None],
    ) -> None:
        self._store = store
        self._model = model
        self._clock = clock
        self._on_unsaved = on_unsaved
        # In every etag, so that a restarted daemon revalidates nobody's old one.
        self._boot = secrets.token_hex(4)
        self._minted = 0
        self._saving = asyncio.Lock()
        self._later: asyncio.Task[None] | None = None
        self.placement: Placement | None = None
        self.history = History()
        stored = store.load() if store else None
        # Revisions grow even over a change of the model.
        self._revision = stored.revision if stored else 0
        self.restorable = stored if stored and stored.model == model else None

    def started(self, shape: ModelShape, experts: Experts, origin: str, actor: str) -> None:
        """An engine runs with ``experts``: keeps what is current or stored if it is the same.

        What an operator has restarted for can be undone as far as the new slots allow.
        """
        current, stored = self.placement, self.restorable
        if current and (current.shape, current.experts) == (shape, experts):
            return
        if current is None and stored and (stored.shape, stored.experts) == (shape, experts):
            self.history = stored.history
            self.placement = Placement(
                shape, experts, stored.revision, self._mint(), "restored", stored.update_time
            )
            return
        if current is None and stored:
            self.history = stored.history
        self._advance(shape, experts, origin)
        entry = self._entry(actor, (), 0)
        if actor != DAEMON and current:
            before = UndoPoint(current.revision, current.experts)
            self.history = self.history.applied(entry, before).restricted(shape)
        else:
            self.history = self.history.restricted(shape).recorded(entry)

    def committed(self, change: Change, moves: Sequence[Move]) -> Placement:
        """A change is in effect, by these moves."""
        before = self._current()
        placement = self._advance(before.shape, change.experts, change.origin)
        entry = self._entry(change.actor, moves, bytes_of(before.shape, moves))
        self.history = self.history.changed(
            change.kind, entry, UndoPoint(before.revision, before.experts)
        )
        return placement

    def check_etag(self, etag: str) -> None:
        """Returns if ``etag`` is that of the current placement.

        Raises:
            EtagRequired, PlacementStale: it is empty, or another one.
        """
        current = self._current()
        if not etag:
            raise EtagRequired(
                "The request has no etag: read the placement, then send the etag it came with."
            )
        if etag != current.etag:
            raise PlacementStale(
                f"The placement has changed since etag {etag} was read: it is at revision "
                f"{current.revision} now; read it again, then retry.",
                etag=current.etag,
            )

    def save_soon(self) -> None:
        """Saves what is current in a few seconds: a policy's many small changes become one."""
        if self._later is None or self._later.done():
            self._later = asyncio.create_task(self._save_later(), name="save-placement")

    async def close(self) -> None:
        """Writes what :meth:`save_soon` has put off."""
        if self._later is not None and not self._later.done():
            self._later.cancel()
            await asyncio.gather(self._later, return_exceptions=True)
            await self.save()

    async def _save_later(self) -> None:
        await asyncio.sleep(_POLICY_SAVE_SECONDS)
        await self.save()

    async def save(self) -> None:
        """Returns when the current placement is on the disk, or could not be written there."""
        if self._store is None:
            return
        async with self._saving:
            current = self._current()
            stored = StoredPlacement(
                model=self._model,
                shape=current.shape,
                experts=current.experts,
                revision=current.revision,
                origin=current.origin,
                update_time=current.update_time,
                history=self.history,
            )
            try:
                await asyncio.to_thread(self._store.save, stored)
            except OSError as error:
                self._on_unsaved(
                    f"The placement of revision {current.revision} could not be saved ({error}); "
                    "it is in effect, but a restarted daemon will not know it."
                )
            else:
                self._on_unsaved(None)

    def _current(self) -> Placement:
        if self.placement is None:
            raise RuntimeError("no placement has been committed yet")
        return self.placement

    def _advance(self, shape: ModelShape, experts: Experts, origin: str) -> Placement:
        self._revision += 1
        self.placement = Placement(
            shape, experts, self._revision, self._mint(), origin, self._clock()
        )
        return self.placement

    def _mint(self) -> str:
        self._minted += 1
        return f'"{self._boot}-{self._minted:x}"'

    def _entry(self, actor: str, moves: Sequence[Move], size: int) -> HistoryEntry:
        current = self._current()
        return HistoryEntry(
            revision=current.revision,
            time=current.update_time,
            origin=current.origin,
            moves=len(moves),
            bytes=size,
            actor=actor,
        )
