"""The child of :mod:`ktd.model.hub`: asks Hugging Face, checks the disk, downloads, reports."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

_WANTED = (".safetensors", ".json", ".txt", ".model", ".jinja", ".tiktoken", ".py")
# Folders hold the same weights once more, in other forms.
_ALLOW = [f"*{ending}" for ending in _WANTED]
_IGNORE = ["*/*"]
_REPORT_SECONDS = 1.0
_GIB = 1 << 30
# What an answer may take; a download has no limit, as it makes progress.
_ASK_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Request:
    """What to fetch."""

    repo_id: str
    revision: str | None
    cache_dir: str | None

    @property
    def cache(self) -> Path:
        """Where it goes."""
        return Path(self.cache_dir or constants.HF_HUB_CACHE)

    @property
    def blobs(self) -> Path:
        """Where its files are stored, unfinished ones too."""
        return self.cache / f"models--{self.repo_id.replace('/', '--')}" / "blobs"


class Refused(Exception):
    """The download cannot be made; ``kind`` is ``"disk"`` or ``"model"``."""

    def __init__(self, message: str, kind: str = "model") -> None:
        super().__init__(message)
        self.kind = kind


def fetch(request: Request) -> str:
    """Returns the folder.

    Raises:
        Refused: with one sentence.
    """
    try:
        info = HfApi().model_info(
            request.repo_id,
            revision=request.revision,
            files_metadata=True,
            timeout=_ASK_SECONDS,
        )
    except GatedRepoError as error:
        raise Refused(
            f"{request.repo_id} is gated: accept its terms on Hugging Face and set HF_TOKEN."
        ) from error
    except RevisionNotFoundError as error:
        raise Refused(f"{request.repo_id} has no revision {request.revision!r}.") from error
    except RepositoryNotFoundError as error:
        raise Refused(
            f"There is no model {request.repo_id} on Hugging Face, or it is private and HF_TOKEN "
            "does not open it; there is no folder of that name either."
        ) from error
    except HFValidationError as error:
        raise Refused(f"{request.repo_id} is no Hugging Face id: {error}.") from error
    except (OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        return _cached(request, error)
    except Exception as error:
        # Clients of several HTTP libraries, each with its own tree of connection errors.
        if "http" in type(error).__module__ or "requests" in type(error).__module__:
            return _cached(request, error)
        raise
    files = {
        sibling.rfilename: sibling.size or 0
        for sibling in info.siblings or ()
        if sibling.rfilename.endswith(_WANTED) and "/" not in sibling.rfilename
    }
    if not any(name.endswith(".safetensors") for name in files):
        raise Refused(f"{request.repo_id} has no safetensors files, and ktd reads no others.")
    _check_disk(request, info.sha, files)
    with _Progress(request, sum(files.values())):
        return snapshot_download(
            request.repo_id,
            # By its name and not by the commit: only then is it found again offline.
            revision=request.revision,
            cache_dir=request.cache_dir,
            allow_patterns=_ALLOW,
            ignore_patterns=_IGNORE,
        )


def _cached(request: Request, error: Exception) -> str:
    """What the cache has, when Hugging Face cannot be asked."""
    try:
        return snapshot_download(
            request.repo_id,
            revision=request.revision,
            cache_dir=request.cache_dir,
            local_files_only=True,
            allow_patterns=_ALLOW,
            ignore_patterns=_IGNORE,
        )
    except LocalEntryNotFoundError:
        offline = isinstance(error, OfflineModeIsEnabled)
        why = "HF_HUB_OFFLINE is set" if offline else f"it cannot be reached ({_line(error)})"
        raise Refused(
            f"There is no folder {request.repo_id}; as a repository of Hugging Face it is not, or "
            f"not completely, in the cache {request.cache}, and cannot be asked for: {why}."
        ) from error


def _check_disk(request: Request, commit: str | None, files: dict[str, int]) -> None:
    missing = sum(
        size
        for name, size in files.items()
        if not isinstance(
            try_to_load_from_cache(
                request.repo_id, name, cache_dir=request.cache_dir, revision=commit
            ),
            str,
        )
    )
    missing -= sum(path.stat().st_size for path in request.blobs.glob("*.incomplete"))
    place = request.cache
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if missing > free:
        raise Refused(
            f"{request.repo_id} needs {missing / _GIB:.1f} GiB more on the disk of {place} "
            f"({sum(files.values()) / _GIB:.1f} GiB in all), and {free / _GIB:.1f} GiB are free; "
            "make room, or choose another place with --download-dir.",
            kind="disk",
        )


class _Progress:
    """Reports how much of the blobs is on the disk, while entered."""

    def __init__(self, request: Request, total: int) -> None:
        self._request, self._total = request, max(total, 1)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._report, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _report(self) -> None:
        while not self._stop.wait(_REPORT_SECONDS):
            done = 0
            for path in self._request.blobs.glob("*"):
                try:
                    done += path.stat().st_size
                except FileNotFoundError:
                    continue  # an unfinished file got its name in this moment
            share = min(100, 100 * done // self._total)
            say(
                progress=f"Downloading {self._request.repo_id}: {share} % of "
                f"{self._total / _GIB:.1f} GiB."
            )


def say(**message: Any) -> None:
    """One line to the parent."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


def main() -> None:
    """Fetches what the first argument, a JSON object, describes."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        say(folder=fetch(Request(**json.loads(sys.argv[1]))))
    except Refused as refused:
        say(error=str(refused), kind=refused.kind)
    except Exception as error:  # noqa: BLE001 - the parent must get a sentence whatever happens
        say(error=f"The download failed: {_line(error)} ({type(error).__name__}).", kind="model")
    # Worker threads of a failed download would be waited for.
    os._exit(0)


if __name__ == "__main__":
    main()
