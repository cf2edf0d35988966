"""What the processes of a daemon take, over time: resident memory, threads, files, GPU memory."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.device import on_gpu

# What the median of the last quarter may be above that of the second: page-level noise.
ALLOWED_SHARE = 0.01
ALLOWED_KIB = 4096
_FIELDS = ("KiB resident", "threads", "open files", "MiB on GPUs")
_MEMORY = "KiB resident"


def _of_process(pid: int) -> tuple[str, list[int]]:
    status = Path(f"/proc/{pid}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    files = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    return fields["Name"], [int(fields["VmRSS"].split()[0]), int(fields["Threads"]), files]


def _on_gpus() -> dict[int, int]:
    """MiB of device memory by process, of all GPUs."""
    command = [
        "nvidia-smi",
        "--query-compute-apps=pid,used_memory",
        "--format=csv,noheader,nounits",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    found: dict[int, int] = {}
    for line in done.stdout.splitlines():
        pid, _, used = line.partition(",")
        found[int(pid)] = found.get(int(pid), 0) + int(used)
    return found


@dataclass
class Growth:
    """Samples of some processes.

    Attributes:
        pids: Of the processes.
        names: Theirs.
        times: Of the samples, in seconds.
        rows: For each sample, for each process, its values in the order of ``_FIELDS``; the last,
            of GPUs, is absent where engines have none.
    """

    pids: Sequence[int]
    names: dict[int, str] = field(default_factory=dict)
    times: list[float] = field(default_factory=list)
    rows: list[dict[int, list[int]]] = field(default_factory=list)

    def sample(self) -> None:
        """Looks once."""
        found = {}
        gpus = _on_gpus() if on_gpu() else None
        for pid in self.pids:
            self.names[pid], found[pid] = _of_process(pid)
            if gpus is not None:
                found[pid].append(gpus.get(pid, 0))
        self.times.append(time.monotonic())
        self.rows.append(found)

    async def watch(self, until: float, every: float) -> None:
        """Looks every so many seconds until the time is over."""
        while time.monotonic() < until:
            await asyncio.to_thread(self.sample)
            await asyncio.sleep(every)

    def report(self) -> Iterator[str]:
        """A line of each process and what it takes; a line of what has grown begins with GREW.

        Medians of the second and of the last quarter are compared, as the first is warming up. The
        slope is that of least squares from the second quarter on.
        """
        quarter = len(self.rows) // 4
        times = [at - self.times[0] for at in self.times][quarter:]
        for pid in self.pids:
            for index, what in enumerate(_FIELDS[: len(self.rows[0][pid])]):
                values = [row[pid][index] for row in self.rows][quarter:]
                before, after = (
                    statistics.median(part) for part in (values[:quarter], values[-quarter:])
                )
                allowed = max(ALLOWED_KIB, ALLOWED_SHARE * before) if what == _MEMORY else 0
                slope = 60 * statistics.linear_regression(times, values).slope
                grew = "GREW " if after > before + allowed else ""
                yield (
                    f"{grew}{self.names[pid]:18} {what:13} {before:.0f} -> {after:.0f}, "
                    f"{slope:+.2f} a minute"
                )
