"""A daemon for ``ktd bench table``, which alone starts it; it ends when the bench does.

Its engine takes the routing from a file, so its answers have no meaning. What turns that on comes
through a pipe from the bench's process: no flag, variable or key of ktd.toml does, and a unit has
nothing to write there. ``ktd serve`` never reads it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import IO

from ktd.app.daemon import serve
from ktd.config.sources import from_process
from ktd.enginespec import Bench
from ktd.errors import ConfigError, KtdError


def main(argv: Sequence[str], pipe: IO[str]) -> int:
    """Serves with the arguments of ``ktd serve`` while the other end of ``pipe`` is open."""
    try:
        bench = read_bench(pipe)
        threading.Thread(target=_end_with, args=(pipe,), daemon=True).start()
        return serve(from_process(list(argv)), bench=bench)
    except KtdError as error:
        sys.stderr.write(f"ktd: {error}\n")
        return 1


def read_bench(pipe: IO[str]) -> Bench:
    """What the bench has written into its pipe: one line of JSON.

    Raises:
        ConfigError: There is none; somebody else has started this.
    """
    if pipe.isatty():
        raise ConfigError("this daemon is started by ktd bench table alone; use ktd serve")
    try:
        raw = json.loads(pipe.readline())
        return Bench(str(raw["routing"]), str(raw["run_id"]), bool(raw["keep_cpu_path"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            "this daemon is started by ktd bench table alone; use ktd serve"
        ) from error


def _end_with(pipe: IO[str]) -> None:
    """Waits until the bench is gone, then ends this process as it would have."""
    while pipe.readline():
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], sys.stdin))
