"""What the sizes of a measurement follow from: the caches and the memory of this host."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_UNKNOWN_CACHE = 64 << 20  # as large as common ones, for a host that does not tell
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Host:
    """Facts of this machine.

    Attributes:
        cpu: Its model name.
        last_level_cache: Bytes of all last-level caches that this process's CPUs have.
        available: Bytes that can be allocated without swapping.
    """

    cpu: str
    last_level_cache: int
    available: int

    @classmethod
    def read(
        cls,
        sysfs: Path = Path("/sys/devices/system/cpu"),
        proc: Path = Path("/proc"),
        cgroup: Path = _CGROUP,
    ) -> Host:
        """Asks the kernel."""
        names = [
            line.partition(":")[2].strip()
            for line in _text(proc / "cpuinfo").splitlines()
            if line.startswith("model name")
        ]
        return cls(
            cpu=names[0] if names else "unknown CPU",
            last_level_cache=_last_level_cache(sysfs) or _UNKNOWN_CACHE,
            available=min(_available(proc), _cgroup_room(cgroup)),
        )


def _last_level_cache(sysfs: Path) -> int:
    sizes: dict[str, int] = {}  # by the CPUs that share it
    for cpu in os.sched_getaffinity(0):
        found = [
            (int(_text(index / "level") or 0), index)
            for index in (sysfs / f"cpu{cpu}" / "cache").glob("index*")
            if _text(index / "type").strip() == "Unified"
        ]
        if found:
            _, index = max(found)
            sizes[_text(index / "shared_cpu_list")] = _bytes(_text(index / "size").strip())
    return sum(sizes.values())


def _bytes(text: str) -> int:
    if text[-1:] in _UNITS:
        return int(text[:-1]) * _UNITS[text[-1]]
    return int(text or 0)


def _available(proc: Path) -> int:
    for line in _text(proc / "meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cgroup_room(cgroup: Path) -> int:
    limit = _text(cgroup / "memory.max").strip()
    if not limit.isdigit():
        return 1 << 62
    return max(0, int(limit) - int(_text(cgroup / "memory.current").strip() or 0))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
