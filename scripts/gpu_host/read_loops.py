"""How fast plain loops read memory, in one process or several at once, each on CPUs of its own.

read_loops.py CPUS SECONDS BYTES     one process of `read_at_once`: bytes a second for each line
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence

from ktd.experts import _native

_AHEADS = (512, 4096, 8192, 16384)  # bytes between a load and its prefetch: which is best differs
_SLICE = 1e-3


def read_at_once(
    shares: Sequence[Sequence[int]], num_bytes: int, *, seconds: float, rounds: int
) -> list[float]:
    """Bytes a second of all processes together, round by round.

    Args:
        shares: The CPUs of each process.
        num_bytes: That all together have to read; several times the last-level cache.
        seconds: Of a prefetch distance in a round.
        rounds: How many.

    Raises:
        RuntimeError: A process failed.
    """
    share = str(num_bytes // len(shares))
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, json.dumps(list(cpus)), str(seconds), share],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for cpus in shares
    ]
    try:
        _answers(processes)  # of each: its memory is there
        found: list[float] = []
        for _ in range(rounds):
            rates = _ask(processes)
            # Each with the prefetch distance that is best while the others read too.
            found.append(max(map(sum, zip(*rates, strict=True))))
        return found
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _ask(processes: Sequence[subprocess.Popen[str]]) -> list[list[float]]:
    rates: list[list[float]] = [[] for _ in processes]
    for ahead in _AHEADS:
        for process in processes:
            if process.stdin is not None:
                process.stdin.write(f"{ahead}\n")
                process.stdin.flush()
        for rate, answer in zip(rates, _answers(processes), strict=True):
            rate.append(answer)
    return rates


def _answers(processes: Sequence[subprocess.Popen[str]]) -> list[float]:
    answers = []
    for process in processes:
        line = process.stdout.readline() if process.stdout is not None else ""
        if not line:
            raise RuntimeError(f"a read loop ended with status {process.wait()}")
        answers.append(float(line))
    return answers


def main() -> None:
    """One process."""
    cpus, seconds = json.loads(sys.argv[1]), float(sys.argv[2])
    loop = _native.Ceilings(int(sys.argv[3]), cpus)
    print(0.0, flush=True)
    for line in sys.stdin:
        # The mean and not the typical slice: processes count for the time in which all read.
        rates = loop.read_rate(len(cpus), seconds, int(line), _SLICE)
        print(rates[1], flush=True)


def median_gb(rates: Sequence[float]) -> str:
    """For a table: ``231.0 (229.1 to 232.5)`` GB/s."""
    low, middle, high = (
        f"{rate / 1e9:.1f}" for rate in (min(rates), statistics.median(rates), max(rates))
    )
    return f"{middle} ({low} to {high})"


if __name__ == "__main__":
    main()
