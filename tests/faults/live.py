"""A real daemon in whose engine failures can be planted."""

from __future__ import annotations

from tests.faults.points import RUNNER
from tests.live import ROOT, LiveDaemon


class FaultyDaemon(LiveDaemon):
    """Whose ranks meet the failures that a test arms; see tests/faults.

    Args:
        args: Of ``ktd serve``.
        runner: What SGLang's runner is for ranks, of ``points``: UNTRIED, WRONG; None: as it is.
        env: Variables beside this process's.
    """

    def __init__(
        self, *args: str, runner: str | None = None, env: dict[str, str] | None = None
    ) -> None:
        super().__init__(*args, env={**(env or {}), **({RUNNER: runner} if runner else {})})
        self.command[1:4] = ["-m", "tests.faults.daemon"]
        paths = [str(ROOT), self.environment.get("PYTHONPATH", "")]
        self.environment["PYTHONPATH"] = ":".join(filter(None, paths))
