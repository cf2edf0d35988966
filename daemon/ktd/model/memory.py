"""Whether the host's memory holds a model, with the sum that says so."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ktd.errors import DoesNotFit
from ktd.model.facts import ModelFacts

GIB = 1 << 30
# What SGLang's processes take beside weights, seen with 0.5.23 and torch 2.14 on a CPU host.
ENGINE_BYTES = 3 * GIB // 2
RANK_BYTES = 3 * GIB // 4
# Pinned buffers for what a GPU cannot read by itself: ktd.cuda.pinned_ring has the same figure.
STAGING_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Bytes that this process and its children may still take."""

    available: int

    @classmethod
    def read(cls, proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> HostMemory:
        """``MemAvailable``, or less where a cgroup (version 2) of this process limits it."""
        text = (proc / "meminfo").read_text()
        match = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
        available = int(match.group(1)) << 10 if match else 0
        for line in (proc / "self/cgroup").read_text().splitlines():
            if line.startswith("0::"):
                available = min(available, _cgroup_room(cgroups, line[3:].lstrip("/"), available))
        return cls(available)


@dataclass(frozen=True, slots=True)
class Needs:
    """Bytes of host memory that an engine will take, by what for.

    Attributes:
        staging: Pinned buffers through which slots on GPUs are filled.
        cached: Experts that are used from the page cache, which takes memory as long as nobody
            else wants it; no part of the total.
    """

    experts: int
    slots: int
    others: int
    engine: int
    staging: int = 0
    cached: int = 0

    @property
    def total(self) -> int:
        """Of all."""
        return self.experts + self.slots + self.others + self.engine + self.staging

    def sum_text(self) -> str:
        """The sum for people."""
        parts = []
        if self.experts or not self.cached:
            beside = "what the experts have beside weights" if self.cached else "experts"
            parts.append(f"{size_text(self.experts)} {beside}")
        if self.slots:
            parts.append(f"{size_text(self.slots)} expert slots")
        if self.others:
            parts.append(f"{size_text(self.others)} other weights")
        if self.staging:
            parts.append(f"{size_text(self.staging)} that copies to the GPU pass through")
        parts.append(f"{size_text(self.engine)} the engine itself")
        return f"{' + '.join(parts)} = {size_text(self.total)}"


def needs_of(facts: ModelFacts, *, slots: int, ranks: int, device: str) -> Needs:
    """What ``facts`` take with ``slots`` expert slots over all layers.

    On a GPU host slots and other weights are in device memory.
    """
    on_host = device == "cpu"
    staged = bool(slots) and not on_host and not facts.gpu_reads_host
    return Needs(
        experts=facts.own_expert_bytes,
        slots=slots * facts.expert_bytes if on_host else 0,
        others=facts.other_bytes if on_host else 0,
        engine=ENGINE_BYTES + ranks * RANK_BYTES,
        staging=ranks * STAGING_BYTES if staged else 0,
        cached=facts.host_store_bytes - facts.own_expert_bytes,
    )


def check_fits(needs: Needs, memory: HostMemory) -> None:
    """Refuses what cannot fit.

    Raises:
        DoesNotFit: with the sum, and how much is missing.
    """
    if needs.total > memory.available:
        fewer = "; with fewer experts in slots" if needs.slots else ""
        without = needs.total - needs.slots
        helps = fewer and without <= memory.available
        hint = f"{fewer} it takes {size_text(without)}" if helps else ""
        raise DoesNotFit(
            f"The model needs {needs.sum_text()} of host memory, and "
            f"{size_text(memory.available)} are available{hint}."
        )


def cache_complaint(needs: Needs, memory: HostMemory) -> str | None:
    """A sentence where the page cache will not hold the experts that are used from it, or None."""
    room = max(0, memory.available - needs.total)
    if needs.cached <= room:
        return None
    return (
        f"The page cache can have {size_text(room)} beside the engine, and the experts that are "
        f"used from it are {size_text(needs.cached)}: steps will wait for the disk; free memory, "
        "or serve a smaller model."
    )


def fitting_ratio(facts: ModelFacts, room: int) -> float:
    """The largest share of experts, in steps of 1 %, whose slots fit into ``room`` bytes."""
    share = max(0, room) / (facts.total_experts * facts.expert_bytes)
    return min(1.0, int(share * 100) / 100)


def _cgroup_room(cgroups: Path, name: str, most: int) -> int:
    """Room below the tightest ``memory.max`` from the process's cgroup up to the root."""
    room = most
    folder = cgroups / name
    while folder != folder.parent and folder.is_relative_to(cgroups):
        try:
            limit = (folder / "memory.max").read_text().strip()
            used = int((folder / "memory.current").read_text()) - _page_cache(folder)
        except (OSError, ValueError):
            limit, used = "max", 0
        if limit.isdigit():
            room = min(room, max(0, int(limit) - used))
        folder = folder.parent
    return room


def _page_cache(group: Path) -> int:
    """Bytes of files that a group is charged for, which the kernel gives up when it needs them."""
    try:
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return int(stat["active_file"]) + int(stat["inactive_file"])
    except (OSError, ValueError, KeyError):
        return 0


def size_text(size: int) -> str:
    """A size for people: in GiB, or in MiB below a tenth of one."""
    return f"{size / GIB:.1f} GiB" if size >= GIB // 10 else f"{size / (1 << 20):.1f} MiB"
