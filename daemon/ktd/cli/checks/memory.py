"""Host memory, what of it this process may use, NUMA nodes and huge pages."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from ktd.cli.checks.finding import Finding, Level
from ktd.cli.quantities import bytes_text, plural

_KIB = 1024
_FEW_FREE_BYTES = 8 << 30


def memory_findings(root: Path = Path("/"), *, gpu: bool = False) -> list[Finding]:
    """Everything about memory.

    Args:
        root: Where ``proc`` and ``sys`` lie.
        gpu: Whether there is one.
    """
    return [
        _available(root),
        *_page_cache(root),
        *_cgroup(root),
        _numa(root),
        _huge_pages(root),
        _locked(gpu=gpu),
    ]


def _meminfo(root: Path) -> dict[str, int]:
    """``/proc/meminfo`` with sizes in bytes (see proc_meminfo(5))."""
    values = {}
    for line in (root / "proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        number, *unit = rest.split()
        values[name] = int(number) * (_KIB if unit == ["kB"] else 1)
    return values


def _available(root: Path) -> Finding:
    try:
        info = _meminfo(root)
        total, free = info["MemTotal"], info["MemAvailable"]
    except (OSError, KeyError, ValueError) as error:
        return Finding("memory", "available", Level.NOTE, f"could not be read ({error})")
    data = {"total_bytes": total, "available_bytes": free}
    text = f"{bytes_text(free)} of {bytes_text(total)} available"
    if free < _FEW_FREE_BYTES:
        advice = (
            "every expert of a model lives in host memory; large models will not fit, unless "
            "--host-memory mmap leaves them in the page cache"
        )
        return Finding("memory", "available", Level.WARNING, text, advice, data)
    return Finding("memory", "available", Level.OK, text, data=data)


def _page_cache(root: Path) -> list[Finding]:
    """What of memory holds files now; it counts as available."""
    try:
        cached = _meminfo(root)["Cached"]
    except (OSError, KeyError, ValueError):
        return []
    text = f"{bytes_text(cached)} of files now; --host-memory mmap uses experts from there"
    return [Finding("memory", "page cache", Level.NOTE, text, data={"cached_bytes": cached})]


def _cgroup(root: Path) -> list[Finding]:
    """The tightest cgroup v2 limit above this process, if there is one."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
        own = next(line[3:] for line in lines if line.startswith("0::"))
    except (OSError, StopIteration):
        return []
    limits = []
    top = root / "sys/fs/cgroup"
    folder = top / own.strip("/")
    while folder == top or top in folder.parents:
        try:
            text = (folder / "memory.max").read_text().strip()
        except OSError:
            text = "max"
        if text.isdigit():
            limits.append(int(text))
        folder = folder.parent
    if not limits:
        return []
    limit = min(limits)
    text = f"this process's group may use {bytes_text(limit)}"
    return [Finding("memory", "cgroup limit", Level.NOTE, text, data={"limit_bytes": limit})]


def _numa(root: Path) -> Finding:
    nodes = {}
    for node in sorted((root / "sys/devices/system/node").glob("node[0-9]*")):
        try:
            nodes[node.name] = (node / "cpulist").read_text().strip()
        except OSError:
            continue
    if not nodes:
        return Finding("memory", "NUMA", Level.NOTE, "no node information", data={"nodes": {}})
    spread = ", ".join(f"{name}: CPUs {cpus or 'none'}" for name, cpus in nodes.items())
    text = f"{plural(len(nodes), 'node')} ({spread})"
    return Finding("memory", "NUMA", Level.OK, text, data={"nodes": nodes})


def _huge_pages(root: Path) -> Finding:
    setting = root / "sys/kernel/mm/transparent_hugepage/enabled"
    try:
        mode = setting.read_text().partition("[")[2].partition("]")[0]
        reserved = _meminfo(root).get("HugePages_Total", 0)
    except (OSError, ValueError):
        mode, reserved = "", 0
    data = {"transparent": mode, "reserved": reserved}
    text = f"transparent huge pages: {mode or 'not offered by this kernel'}"
    if reserved:
        text += f"; {reserved} reserved"
    if mode == "never":
        advice = "'madvise' makes reading experts faster: write it to " + str(setting)
        return Finding("memory", "huge pages", Level.WARNING, text, advice, data)
    return Finding("memory", "huge pages", Level.OK if mode else Level.NOTE, text, data=data)


def _locked(*, gpu: bool) -> Finding:
    """Experts are registered with a GPU's driver, which locks their pages."""
    soft, _hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    data: dict[str, int | None] = {"limit_bytes": soft}
    if soft == resource.RLIM_INFINITY:
        data = {"limit_bytes": None}
        return Finding("memory", "locked memory", Level.OK, "unlimited", data=data)
    text = bytes_text(soft)
    if not gpu:
        text += " (matters only with a GPU)"
        return Finding("memory", "locked memory", Level.NOTE, text, data=data)
    if os.geteuid() == 0:
        text += ", which does not bind root"
        return Finding("memory", "locked memory", Level.OK, text, data=data)
    text += "; all experts are registered with the GPU's driver, which locks them"
    advice = (
        "should the driver refuse, raise the limit: 'ulimit -l unlimited', or "
        "LimitMEMLOCK=infinity in a unit"
    )
    return Finding("memory", "locked memory", Level.NOTE, text, advice, data)
