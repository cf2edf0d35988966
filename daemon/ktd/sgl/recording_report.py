"""Rank 0's answer to a control call on its recorder: one small JSON file per call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def put(runtime_dir: Path, sequence: int, report: dict[str, Any]) -> None:
    """Answers the call ``sequence``."""
    path = _path(runtime_dir, sequence)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(report))
    temporary.rename(path)


def take(runtime_dir: Path, sequence: int) -> dict[str, Any] | None:
    """The answer to the call ``sequence``, once; None until it is there."""
    path = _path(runtime_dir, sequence)
    try:
        report: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    path.unlink()
    return report


def _path(runtime_dir: Path, sequence: int) -> Path:
    return runtime_dir / f"recording-{sequence}.json"
