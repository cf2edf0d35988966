"""What every SGLang process leaves in the runtime directory to show that ktd's plugin ran in it."""

from __future__ import annotations

import json
import os
from importlib.metadata import version as distribution_version
from pathlib import Path

from ktd.enginespec import EngineSpec
from ktd.version import __version__


def report_process(spec: EngineSpec) -> None:
    """Writes ``process-PID.json``: the process's hello, with its versions."""
    facts = {
        "pid": os.getpid(),
        "ktd": __version__,
        "sglang": distribution_version("sglang"),
    }
    path = Path(spec.runtime_dir) / f"process-{os.getpid()}.json"
    path.write_text(json.dumps(facts))


def without_hello(spec: EngineSpec, pids: list[int]) -> list[int]:
    """Those of ``pids`` in which the plugin did not run, or ran in another version of ktd."""
    silent = []
    for pid in pids:
        path = Path(spec.runtime_dir) / f"process-{pid}.json"
        try:
            facts = json.loads(path.read_text())
        except (OSError, ValueError):
            facts = {}
        if facts.get("ktd") != __version__:
            silent.append(pid)
    return silent
