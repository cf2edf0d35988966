"""Profiles as an operator uses them, and the one that is kept automatically."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import structlog

from ktd.errors import EngineNotReady, InvalidArgument, KtdError, ProfileMismatch
from ktd.stats.profile import AUTO, BEFORE, LIVE, Profile, check_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray

    from ktd.stats.hub import StatsHub
    from ktd.stats.profile import ProfileShape
    from ktd.stats.profile_store import ProfileStore

SAVE_SECONDS = 300.0
_GIVEN_PAIRS = 100_000
_log = structlog.get_logger(__name__)


class Profiles:
    """Joins the statistics of the engine to the profiles in the state directory.

    The profile ``auto`` is what strategies use, saved when an engine ends and every five minutes;
    the next start of the same model begins with it. That of another model is kept once, as
    ``auto-before``.

    Args:
        store: Where they lie.
        hub: Whose counts strategies use.
        model: As it was named to the daemon.
        clock: Unix seconds.
    """

    def __init__(
        self,
        store: ProfileStore,
        hub: StatsHub,
        model: str,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._hub = hub
        self._model = model
        self._clock = clock
        self._shape: ProfileShape | None = None
        self._given: NDArray[np.int64] | None = None
        self._saved = 0
        self._saver: asyncio.Task[None] | None = None

    def begin_with(self, counts: ArrayLike) -> None:
        """What strategies use where no profile was kept: ``counts`` per MoE layer and expert.

        Nobody says what kind of work they are of, so they count as prefill. Shares of 1 become
        pairs, as 100,000 a layer at most.
        """
        given = np.asarray(counts, dtype=np.float64)
        if (given != np.rint(given)).any():
            given = np.ceil(given * (_GIVEN_PAIRS / given.sum(axis=1).max()))
        self._given = np.stack([given, np.zeros_like(given)]).astype(np.int64)

    def attach(self, shape: ProfileShape) -> None:
        """An engine serves a model of that shape; the hub counts it."""
        if self._shape != shape:
            self._shape = shape
            kept = self.automatic(shape)
            if kept is not None:
                self._hub.use(kept.counts)
                _log.info("statistics continue", profile=AUTO, pairs=int(kept.counts.sum()))
            elif self._given is not None:
                self._hub.use(self._given)
            self._saved = self._hub.total()
        self._saver = asyncio.create_task(self._save_regularly(), name="profile-saver")

    def detach(self) -> None:
        """The engine is gone and the hub has its last counts."""
        if self._saver is not None:
            self._saver.cancel()
            self._saver = None
            self._save_automatic()

    def automatic(self, shape: ProfileShape) -> Profile | None:
        """The profile that was kept automatically, if it is of this model."""
        kept = self._kept()
        return kept if kept is not None and self._same_model(kept, shape) else None

    def all(self) -> list[Profile]:
        """Every stored profile, newest first."""
        return self._store.all()

    def get(self, name: str) -> Profile:
        """A stored profile, or ``live``: what strategies use now.

        Raises:
            ProfileNotFound: there is none of that name.
            EngineNotReady: nothing is known that ``live`` could stand for.
        """
        return self._live(LIVE) if name == LIVE else self._store.load(name)

    def save(self, name: str, *, replace: bool = False) -> Profile:
        """Stores what strategies use now.

        Raises:
            InvalidArgument: the name is not allowed, or is one that the daemon uses itself.
            ProfileExists: it is there, and may not be replaced.
            EngineNotReady: nothing has been counted.
        """
        check_name(name)
        if name in (AUTO, LIVE):
            raise InvalidArgument(f"{name!r} is kept by the daemon itself; choose another name.")
        profile = self._live(name)
        self._store.save(profile, replace=replace)
        return profile

    def load(self, name: str) -> Profile:
        """Makes a profile what strategies use from now on, with what is counted after this.

        Raises:
            ProfileNotFound: there is none of that name.
            ProfileMismatch: it is of a model of another shape.
            EngineNotReady: no engine serves.
        """
        profile = self.get(name)
        if self._shape is None:
            raise EngineNotReady(
                "No engine serves a model that the profile could be for; wait until `ktd status` "
                "says READY."
            )
        if profile.shape != self._shape:
            raise ProfileMismatch(
                f"The profile {name!r} is of a model with {profile.shape} ({profile.model}); this "
                f"one has {self._shape}."
            )
        self._hub.use(profile.counts)
        return profile

    def delete(self, name: str) -> None:
        """Removes a stored profile.

        Raises:
            ProfileNotFound: there is none of that name.
        """
        self._store.delete(name)

    def _live(self, name: str) -> Profile:
        counts = self._hub.known()
        if counts is None or self._shape is None or not counts.any():
            raise EngineNotReady(
                "Nothing has been counted yet, so there are no statistics to keep; send requests "
                "first."
            )
        return Profile(name, self._clock(), self._model, self._shape, counts)

    def _kept(self) -> Profile | None:
        try:
            return self._store.load(AUTO)
        except KtdError:
            return None

    def _same_model(self, profile: Profile, shape: ProfileShape) -> bool:
        return profile.shape == shape and profile.model == self._model

    async def _save_regularly(self) -> None:
        while True:
            await asyncio.sleep(SAVE_SECONDS)
            self._save_automatic()

    def _save_automatic(self) -> None:
        """Saves if there is news; that it cannot be saved must not end what serves."""
        total = self._hub.total()
        if self._shape is None or total == self._saved:
            return
        try:
            before = self._kept()
            if before is not None and not self._same_model(before, self._shape):
                with contextlib.suppress(KtdError):
                    self._store.save(replace(before, name=BEFORE), replace=True)
            self._store.save(self._live(AUTO), replace=True)
            self._saved = total
        except KtdError as error:
            _log.warning("the automatic profile was not saved", why=str(error))
