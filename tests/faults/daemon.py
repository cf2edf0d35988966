"""``ktd serve`` with an engine host in which failures can be planted; only tests start it."""

from __future__ import annotations

import sys

from ktd.app.daemon import serve
from ktd.cli.exit_codes import exit_code_of
from ktd.config.sources import from_process
from ktd.errors import KtdError
from ktd.placement.swap import BatchLimits

HOST = (sys.executable, "-m", "tests.faults.host")


def small_batches(_device: str, _rate: float | None) -> BatchLimits:
    """Also beside a GPU, where one batch holds a whole swap of a small model."""
    return BatchLimits()


if __name__ == "__main__":
    BatchLimits.of_operator = small_batches
    try:
        sys.exit(serve(from_process(sys.argv[1:]), command=HOST))
    except KtdError as error:  # as `ktd serve` ends
        print(f"ktd: {error}", file=sys.stderr)
        sys.exit(exit_code_of(error))
