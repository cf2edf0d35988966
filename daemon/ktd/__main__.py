"""`ktd` and `python -m ktd`."""

from __future__ import annotations

import sys

from ktd.cli.program import run


def main() -> int:
    """Runs one command and returns the process's exit code."""
    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
