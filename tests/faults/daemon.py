"""``ktd serve`` with an engine host in which failures can be planted; only tests start it."""

from __future__ import annotations

import sys

from ktd.app.daemon import serve
from ktd.config.sources import from_process

HOST = (sys.executable, "-m", "tests.faults.host")

if __name__ == "__main__":
    sys.exit(serve(from_process(sys.argv[1:]), command=HOST))
