"""Asks a process of its own how fast a GPU reads the host's memory."""

from __future__ import annotations

import subprocess
import sys

_SECONDS = 120.0


def link_bytes_per_second() -> float | None:
    """As :mod:`ktd.bench.kernels.link` measures it; None without a GPU, or room on it."""
    command = [sys.executable, "-m", "ktd.bench.kernels.link"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return None
    text = done.stdout.strip()
    return float(text) if done.returncode == 0 and text else None
