"""``ktd serve`` with an engine host in which failures can be planted; only tests start it."""

from __future__ import annotations

import sys

from ktd.app.daemon import serve
from ktd.config.sources import from_process
from ktd.placement.swap import BatchLimits

HOST = (sys.executable, "-m", "tests.faults.host")


def small_batches(_device: str, _rate: float | None) -> BatchLimits:
    """Also beside a GPU, where one batch holds a whole swap of a small model."""
    return BatchLimits()


if __name__ == "__main__":
    BatchLimits.of_operator = small_batches
    sys.exit(serve(from_process(sys.argv[1:]), command=HOST))
