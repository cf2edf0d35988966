"""A daemon that nobody asks costs next to nothing."""

import os
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.engine

SECONDS = 20
SHARE = 0.02


def cpu_seconds(pids):
    """User and system time of processes so far."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def test_the_idle_tree_uses_less_than_two_per_cent_of_a_core(live_daemon):
    """CPU time over time, of every process, daemon included."""
    time.sleep(3)
    pids = live_daemon.processes()
    before, began = cpu_seconds(pids), time.monotonic()
    time.sleep(SECONDS)
    share = (cpu_seconds(pids) - before) / (time.monotonic() - began)
    print(f"{len(pids)} processes use {100 * share:.2f} % of a core")
    assert share < SHARE
