"""What remains of the speed while another process takes one of the pool's cores."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from ktd.bench.kernels.calls import Calls

_WINDOW = 0.2  # seconds; long beside a tick of the scheduler
_TURNS = 7


@dataclass(frozen=True, slots=True)
class BusyCore:
    """Speed with one core taken, against the speed before.

    Attributes:
        kept: Share of the bandwidth that is left, over calls in sum, median of the turns.
        of: The cores that are left, as a share.
    """

    kept: float
    of: float

    def as_json(self) -> dict[str, float]:
        """For ``--json``."""
        return asdict(self) | {"fraction": self.kept / self.of}

    @classmethod
    def measure(cls, calls: Calls) -> BusyCore:
        """Takes turns with and without a process that spins on the pool's last core."""
        threads = calls.pool.threads
        ratios = []
        with _spinner(calls.pool.native.cpus[threads - 1]) as spinner:
            for _ in range(_TURNS):
                alone = _rate(calls)
                spinner.send_signal(signal.SIGCONT)
                try:
                    ratios.append(_rate(calls) / alone)
                finally:
                    spinner.send_signal(signal.SIGSTOP)
        return cls(statistics.median(ratios), (threads - 1) / threads)


@contextmanager
def _spinner(cpu: int) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", "while True: pass"], stdin=subprocess.DEVNULL
    )
    try:
        process.send_signal(signal.SIGSTOP)
        os.sched_setaffinity(process.pid, {cpu})
        yield process
    finally:
        process.kill()
        process.wait()


def _rate(calls: Calls) -> float:
    timed = calls.window(_WINDOW)
    return sum(call.bytes for call in timed) / sum(call.seconds for call in timed)
