"""From MODEL, as a user types it, to a folder here or a Hugging Face id."""

from __future__ import annotations

import re
from pathlib import Path

from ktd.errors import ModelUnsupported

# https://huggingface.co/docs/hub/repositories: owner and name, 96 characters, no "--" or "..".
_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def folder_or_id(model: str) -> Path | str:
    """The folder if it exists, else the id.

    Raises:
        ModelUnsupported: it is neither.
    """
    path = Path(model).expanduser()
    if model and path.is_dir():
        return path.resolve()
    if path.is_file():
        raise ModelUnsupported(
            f"{model} is a file; give the folder that has config.json and the safetensors files."
        )
    looks_like_path = model.startswith(("/", ".", "~")) or model.endswith("/")
    if looks_like_path or not _ID.fullmatch(model) or "--" in model or ".." in model:
        hint = "" if looks_like_path else ", and this is no Hugging Face id (owner/name)"
        raise ModelUnsupported(f"There is no model folder {model}{hint}; check its path.")
    return model
