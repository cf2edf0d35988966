"""A daemon that nobody asks costs next to nothing."""

import os
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.engine

SECONDS = 20
SHARE = 0.02


def cpu_seconds(pids):
    """User and system time of each thread so far, by process, thread and its name."""
    found = {}
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            begin, _, end = (task / "stat").read_text().rpartition(")")
            fields = end.split()
            ticks = int(fields[11]) + int(fields[12])
            name = begin.partition("(")[2]
            found[pid, int(task.name), name] = ticks / os.sysconf("SC_CLK_TCK")
    return found


def test_the_idle_tree_uses_less_than_two_per_cent_of_a_core(live_daemon):
    """CPU time over time, of every thread of every process, daemon included."""
    time.sleep(3)
    pids = live_daemon.processes()
    before, began = cpu_seconds(pids), time.monotonic()
    time.sleep(SECONDS)
    after, seconds = cpu_seconds(pids), time.monotonic() - began
    shares = {thread: (after[thread] - before.get(thread, 0)) / seconds for thread in after}
    print(f"{len(pids)} processes use {100 * sum(shares.values()):.2f} % of a core")
    for (pid, _, name), share in sorted(shares.items(), key=lambda item: -item[1])[:8]:
        print(f"{100 * share:.2f} % by {name} of {pid}")
    assert sum(shares.values()) < SHARE
