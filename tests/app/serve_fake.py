"""``ktd serve`` over the fake engine host: the real daemon, in a process of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ktd.cli.exit_codes import exit_code_of
from ktd.config.sources import from_process
from ktd.errors import KtdError

FAKE_HOST = Path(__file__).parents[1] / "engine/fake_host.py"

if __name__ == "__main__":
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # as `ktd serve` does, before gRPC is imported
    from ktd.app.daemon import serve

    try:
        sys.exit(serve(from_process(sys.argv[1:]), command=(sys.executable, str(FAKE_HOST))))
    except KtdError as error:
        sys.stderr.write(f"ktd: {error}\n")
        sys.exit(exit_code_of(error))
