"""Profiles on disk: a JSON file each in the state directory."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import structlog

from ktd.errors import KtdError, ProfileExists, ProfileNotFound
from ktd.stats.profile import check_name, decoded, encoded

if TYPE_CHECKING:
    from pathlib import Path

    from ktd.stats.profile import Profile

_log = structlog.get_logger(__name__)


class ProfileStore:
    """The folder ``profiles`` of a state directory; files are replaced as a whole."""

    def __init__(self, state_dir: Path) -> None:
        self._folder = state_dir / "profiles"

    def path(self, name: str) -> Path:
        """Where the profile of that name lies, or would."""
        return self._folder / f"{check_name(name)}.json"

    def load(self, name: str) -> Profile:
        """The profile of that name.

        Raises:
            ProfileNotFound: there is none.
            KtdError: its file is damaged.
        """
        path = self.path(name)
        try:
            return decoded(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise ProfileNotFound(
                f"There is no profile {name!r}; `ktd profile list` names them."
            ) from None
        except (OSError, ValueError, AttributeError) as error:
            raise KtdError(f"The profile {path} cannot be read: {error}.") from error

    def all(self) -> list[Profile]:
        """Every profile that can be read, newest first; others are named in the log."""
        found = []
        for path in self._folder.glob("*.json"):
            try:
                found.append(self.load(path.stem))
            except KtdError as error:
                _log.warning("unreadable profile", path=str(path), why=str(error))
        return sorted(found, key=lambda profile: -profile.save_time)

    def save(self, profile: Profile, *, replace: bool) -> None:
        """Writes a profile.

        Raises:
            ProfileExists: one of that name is there, and it may not be replaced.
            KtdError: the state directory cannot be written.
        """
        path = self.path(profile.name)
        if path.exists() and not replace:
            raise ProfileExists(
                f"There is a profile {profile.name!r} already; choose another name, or replace it "
                "with --replace."
            )
        temporary = path.with_suffix(".tmp")
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with temporary.open("w", encoding="utf-8") as file:
                json.dump(encoded(profile), file)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(path)
        except OSError as error:
            raise KtdError(
                f"The profile {path} cannot be written ({error.strerror}); see --state-dir."
            ) from error

    def delete(self, name: str) -> None:
        """Removes a profile.

        Raises:
            ProfileNotFound: there is none of that name.
        """
        try:
            self.path(name).unlink()
        except FileNotFoundError:
            raise ProfileNotFound(
                f"There is no profile {name!r}; `ktd profile list` names them."
            ) from None
