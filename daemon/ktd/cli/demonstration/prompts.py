"""The model and the texts that the demo uses: folders of a checkout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import ktd
from ktd.errors import ConfigError

# Where in its text a domain's prompt begins: where ktd-tiny, whose candidates are often close,
# goes on with few near-ties (none closer than 0.06) and without repeating itself much.
_STARTS = {"prose": 44500, "code": 23000, "docs": 15500}
_LENGTH = 900


@dataclass(frozen=True, slots=True)
class Prompt:
    """The beginning that the model is to go on with."""

    domain: str
    text: str


def models_folder() -> Path:
    """``models`` of the checkout that ktd runs from, or of the current folder."""
    checkout = Path(str(ktd.__file__)).resolve().parents[2] / "models"
    return checkout if checkout.is_dir() else Path("models")


def model_path(given: str | None) -> Path:
    """The model's folder.

    Raises:
        ConfigError: there is none.
    """
    path = Path(given) if given else models_folder() / "ktd-tiny"
    if not (path / "config.json").is_file():
        raise ConfigError(
            f"there is no model at {path}; run the demo in a checkout of ktd, or name one with "
            "--model"
        )
    return path


def prompts(folder: Path) -> tuple[Prompt, ...]:
    """One prompt per domain, cut at line ends.

    Raises:
        ConfigError: a text is missing or too short.
    """
    return tuple(
        Prompt(domain, _excerpt(folder / f"{domain}.txt", start))
        for domain, start in _STARTS.items()
    )


def _excerpt(path: Path, skip: int) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"the text {path} cannot be read ({error.strerror}); run the demo in a checkout of "
            "ktd, or name a folder with prose.txt, code.txt and docs.txt with --texts"
        ) from error
    start = text.find("\n", skip) + 1
    end = text.rfind("\n", start, start + _LENGTH)
    if not start or end <= start:
        raise ConfigError(f"the text {path} is too short: {skip + _LENGTH} characters are needed")
    return text[start : end + 1]
