"""Servers of one generated model, started together and measured in turn."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from ktd.bench.servers import RunningServer, ktd_server

# Small engines, quick starts.
ON_GPU = (
    *("--attention-backend", "triton", "--sampling-backend", "pytorch"),
    *("--grammar-backend", "none", "--mem-fraction-static", "0.7"),
    *("--max-running-requests", "8"),
)
_BEGAN = time.monotonic()


def say(text: str) -> None:
    """Prints a line at once."""
    print(f"{text} ({time.monotonic() - _BEGAN:.0f} s)", flush=True)


def generated_model(folder: Path, shape: str, layers: str) -> Path:
    """A model of a shape in ``folder``, whose experts each server generates for itself."""
    model = folder / f"{shape}-{layers}"
    if not model.exists():
        make = [sys.executable, "-m", "ktd", "make-model", "--shape", shape, "--layers", layers]
        subprocess.run(
            [*make, "--experts", "generated", str(model)], check=True, stdout=subprocess.DEVNULL
        )
    return model


def rest_until(file: Path | None) -> None:
    """Returns when the file is there; at once if none was named."""
    while file is not None and not file.exists():
        time.sleep(0.2)


@contextlib.contextmanager
def started(
    model: Path, options: Mapping[str, Sequence[str]], *, together: bool
) -> Iterator[dict[str, RunningServer]]:
    """All servers; they end when the context is left."""
    stacks = [contextlib.ExitStack() for _ in options]
    with ThreadPoolExecutor(len(stacks) if together else 1) as pool:
        starts = [
            pool.submit(stack.enter_context, ktd_server(model, arguments))
            for stack, arguments in zip(stacks, options.values(), strict=True)
        ]
        try:
            yield {name: start.result() for name, start in zip(options, starts, strict=True)}
        finally:
            for start in starts:
                start.cancel()
            wait(starts)  # one that comes after another has failed ends too
            list(pool.map(lambda stack: stack.close(), stacks))
