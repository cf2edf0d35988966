"""The processor and which of the CPU kernels it can run."""

from __future__ import annotations

import dataclasses
import os
import platform
from pathlib import Path

from ktd.cli.checks.finding import Finding, Level
from ktd.cli.quantities import plural

# The features that decide between kernels now or soon; the rest of the flags is noise here.
_FEATURES = (
    "avx2",
    "fma",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512vbmi",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
)


def cpu_findings(root: Path = Path("/")) -> list[Finding]:
    """The processor, its features and the kernels; ``root`` is where ``proc`` lies."""
    return [_processor(root), _features(root), _kernels()]


def _cpuinfo(root: Path) -> dict[str, str]:
    """The first processor's lines of ``/proc/cpuinfo``."""
    try:
        text = (root / "proc/cpuinfo").read_text()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _processor(root: Path) -> Finding:
    allowed, total = len(os.sched_getaffinity(0)), os.cpu_count() or 0
    name = _cpuinfo(root).get("model name", platform.machine())
    data = {"model": name, "architecture": platform.machine(), "cpus": total, "allowed": allowed}
    text = f"{name}, {plural(total, 'CPU')}"
    if allowed < total:
        text += f", {allowed} of them for this process"
    if platform.machine() != "x86_64":
        advice = "the fast kernels need x86-64; the scalar one is slow everywhere"
        return Finding("cpu", "processor", Level.WARNING, text, advice, data)
    return Finding("cpu", "processor", Level.OK, text, data=data)


def _features(root: Path) -> Finding:
    flags = set(_cpuinfo(root).get("flags", "").split())
    have = [name for name in _FEATURES if name in flags]
    text = " ".join(have) or "none of those that the kernels use"
    return Finding("cpu", "features", Level.OK if have else Level.NOTE, text, data={"have": have})


def _kernels() -> Finding:
    try:
        from ktd.experts import isa  # noqa: PLC0415 - needs the native extension, which may be absent
    except ImportError as error:
        text = f"the native expert pool cannot be loaded ({error})"
        advice = "install ktd from a wheel, or from its checkout with a C++20 compiler"
        return Finding("cpu", "kernels", Level.PROBLEM, text, advice, {"kernels": []})
    rows = isa.isas()
    data = {"kernels": [dataclasses.asdict(row) for row in rows]}
    usable = [row.name for row in rows if row.supported]
    absent = [f"{row.name} (lacks {', '.join(row.missing)})" for row in rows if row.missing]
    text = f"{usable[0]} will be used; also {', '.join(usable[1:]) or 'nothing else'}"
    if absent:
        text += f"; not here: {', '.join(absent)}"
    level = Level.WARNING if usable == ["scalar"] else Level.OK
    advice = "only the slow reference kernel runs on this CPU" if level is Level.WARNING else ""
    return Finding("cpu", "kernels", level, text, advice, data)
