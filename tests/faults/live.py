"""A real daemon in whose engine failures can be planted."""

from __future__ import annotations

from pathlib import Path

from tests.faults.points import HALF, RUNNER
from tests.live import MODEL, ROOT, LiveDaemon


class FaultyDaemon(LiveDaemon):
    """Whose ranks meet the failures that a test arms; see tests/faults.

    Args:
        args: Of ``ktd serve``.
        runner: What SGLang's runner is for ranks, of ``points``: UNTRIED, WRONG; None: as it is.
        half: Whether the CPU has half of what streams to a GPU, whatever that costs.
        env: Variables beside this process's.
        model: As of any daemon.
    """

    def __init__(
        self,
        *args: str,
        runner: str | None = None,
        half: bool = False,
        env: dict[str, str] | None = None,
        model: Path | str = MODEL,
    ) -> None:
        planted = {RUNNER: runner, HALF: "yes" if half else None}
        asked = {name: value for name, value in planted.items() if value is not None}
        super().__init__(*args, env={**(env or {}), **asked}, model=model)
        self.command[1:4] = ["-m", "tests.faults.daemon"]
        paths = [str(ROOT), self.environment.get("PYTHONPATH", "")]
        self.environment["PYTHONPATH"] = ":".join(filter(None, paths))
