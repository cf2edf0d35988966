"""`ktd-tui` and `python -m ktd_tui`: the monitor as a program of its own."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ktd.client import DaemonUnreachable, KtdError, default_socket
from ktd_tui.launch import launch

# As `ktd` ends: its table of exit codes is in README.md.
_ERROR = 1
_UNREACHABLE = 4
_INTERRUPTED = 130


def main() -> int:
    """Parses the arguments and runs the monitor."""
    parser = argparse.ArgumentParser(prog="ktd-tui", description="The live monitor of ktd.")
    parser.add_argument("--socket", metavar="PATH", help="(default: $KTD_SOCKET, else the default)")
    parser.add_argument("--once", action="store_true", help="print one frame's data and leave")
    parser.add_argument("--json", action="store_true", help="with --once: as JSON")
    args = parser.parse_args()
    socket = Path(args.socket) if args.socket else default_socket()
    try:
        return launch(socket, once=args.once, as_json=args.json)
    except KtdError as error:
        sys.stderr.write(f"ktd-tui: {error}\n")
        return _UNREACHABLE if isinstance(error, DaemonUnreachable) else _ERROR
    except KeyboardInterrupt:
        return _INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
