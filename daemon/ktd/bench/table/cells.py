"""Cells of a table, what was measured of them, and the file in which both are kept."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ktd.bench.table.routing import SHIFTING
from ktd.errors import ConfigError

# Shares of experts in slots at which every strategy means the same.
SAME = (0.0, 1.0)
# What a file of an earlier release does not say of its request.
_KNOWN = "statistics where routing shifts"
_UNSAID = {"rounds": 1, _KNOWN: "of the first of its stretches"}


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell.

    Attributes:
        kind: Of the routing.
        ratio: Share of all experts in slots.
        column: Strategy or policy.
        check: Measured on an engine that was started at this ratio.
    """

    kind: str
    ratio: float
    column: str
    check: bool = False


@dataclass(frozen=True, slots=True)
class Measured:
    """What came of a cell.

    Attributes:
        rates: Tokens per second of each run.
        hit_rate: Share of (token, expert) pairs that slots computed.
        between_ms: Median time between two tokens of a stream.
        moved_bytes: Copied into slots by a policy meanwhile.
        move_calls: Calls into the scheduler for that.
        move_call_ms: What one took of its time, the mean.
    """

    rates: tuple[float, ...]
    hit_rate: float
    between_ms: float
    moved_bytes: int = 0
    move_calls: int = 0
    move_call_ms: float = 0.0

    def and_then(self, later: Measured) -> Measured:
        """Both as one: all rates, and means of the rest by how many runs, or calls, each had."""
        here, there = len(self.rates), len(later.rates)
        calls = self.move_calls + later.move_calls
        call_ms = self.move_calls * self.move_call_ms + later.move_calls * later.move_call_ms
        return Measured(
            rates=self.rates + later.rates,
            hit_rate=(here * self.hit_rate + there * later.hit_rate) / (here + there),
            between_ms=(here * self.between_ms + there * later.between_ms) / (here + there),
            moved_bytes=self.moved_bytes + later.moved_bytes,
            move_calls=calls,
            move_call_ms=call_ms / max(1, calls),
        )

    @property
    def rate(self) -> float:
        """The median."""
        return statistics.median(self.rates)

    @property
    def spread(self) -> float:
        """Half the distance between the largest and the smallest."""
        return (max(self.rates) - min(self.rates)) / 2

    def text(self) -> str:
        """Tokens per second: median ± half the spread, of which one run says nothing."""
        return f"{self.rate:.2f}" + (f" ± {self.spread:.2f}" if len(self.rates) > 1 else "")


class ResultFile:
    """Keeps every cell as soon as it is measured, so that a run can go on where one ended.

    Args:
        path: File of JSON lines; None: nothing is kept.
        request: What is measured; a file of another request is not continued.

    Raises:
        ConfigError: The file is of something else, or cannot be read or written.
    """

    def __init__(self, path: Path | None, request: Mapping[str, Any]) -> None:
        self._path = path
        self.results: dict[Cell, Measured] = {}
        if path is None:
            return
        try:
            if path.exists():
                self._read(path, request)
            else:
                path.write_text(json.dumps({"request": request}) + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--resume {path} cannot be used: {error.strerror}") from error

    def _read(self, path: Path, request: Mapping[str, Any]) -> None:
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        try:
            written = dict(json.loads(lines[0])["request"])
            # Files of earlier releases do not say where weights came from.
            written.setdefault("weights", request.get("weights"))
            # A run that was killed may have left half a line at the end.
            for line in lines[1:]:
                if line.endswith("}"):
                    raw = json.loads(line)
                    raw["measured"]["rates"] = tuple(raw["measured"]["rates"])
                    self.results[Cell(**raw["cell"])] = Measured(**raw["measured"])
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ConfigError(f"--resume {path} is no file of ktd bench table") from error
        said = _UNSAID | written
        renew = _KNOWN in request and not any(cell.kind == SHIFTING for cell in self.results)
        if renew:  # nothing in it depends on that so far
            said[_KNOWN] = request[_KNOWN]
        different = [name for name in request if said.get(name) != request[name]]
        if different:
            name = different[0]
            raise ConfigError(
                f"--resume {path} was measured with {name} {said.get(name)}, not "
                f"{request[name]}; name another file"
            )
        if renew and written.get(_KNOWN) != said[_KNOWN]:
            first = json.dumps({"request": written | {_KNOWN: said[_KNOWN]}})
            other = path.with_name(f"{path.name}.new")
            other.write_text("\n".join([first, *lines[1:], ""]), encoding="utf-8")
            other.replace(path)
        elif not text.endswith("\n"):
            with path.open("a", encoding="utf-8") as file:
                file.write("\n")

    def add(self, cell: Cell, measured: Measured) -> None:
        """Keeps one; of a cell that is measured again, both: a later line counts."""
        if (before := self.results.get(cell)) is not None:
            measured = before.and_then(measured)
        self.results[cell] = measured
        if self._path is not None:
            line = json.dumps({"cell": asdict(cell), "measured": asdict(measured)})
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")


def planned(
    kinds: Sequence[str], ratios: Sequence[float], columns: Sequence[str], checks: int
) -> list[Cell]:
    """All cells in the order in which they are measured: those of an engine together.

    A row's cells follow each other, so that what disturbs a host for a while does so to all of
    them. The largest ratio comes first, whose tokens take least: a run whose time is over has most
    of its rows. With nothing in slots, or with everything, there
    is one placement for all columns, and it is measured once.
    """
    cells = [
        Cell(kind, ratio, column)
        for kind in kinds
        for ratio in sorted(ratios, reverse=True)
        for column in (columns[:1] if ratio in SAME else columns)
    ]
    checked = _some(ratios, checks) if "uniform" in columns else []
    return cells + [Cell(kinds[0], ratio, "uniform", check=True) for ratio in checked]


def rows_of(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Those of a row together, in their order."""
    grouped = itertools.groupby(cells, key=lambda cell: (cell.kind, cell.ratio, cell.check))
    return [list(row) for _, row in grouped]


def _some(ratios: Sequence[float], count: int) -> list[float]:
    """Evenly spread ones, without 0, where there is nothing to check."""
    inner = [ratio for ratio in ratios if ratio > 0]
    if count >= len(inner):
        return inner if count else []
    step = (len(inner) - 1) / max(1, count - 1)
    return [inner[round(number * step)] for number in range(count)]
