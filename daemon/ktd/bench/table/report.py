"""A table for people: Markdown, JSON, and lines for a terminal."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ktd.bench.summary import Summary
from ktd.bench.table.cells import SAME, Cell, Measured
from ktd.bench.table.routing import SHIFTING, STRETCH, Routing

_RANKS_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was measured, whole or in part.

    Attributes:
        request: What was asked for; printed, so that it can be repeated.
        kinds, ratios, columns: Of the tables.
        results: Of the cells that are done.
        routings: By kind.
        runs: Of a cell in a round.
    """

    request: Mapping[str, Any]
    kinds: Sequence[str]
    ratios: Sequence[float]
    columns: Sequence[str]
    results: Mapping[Cell, Measured]
    routings: Mapping[str, Routing]
    runs: int

    def row(self, kind: str, ratio: float) -> list[Measured | None]:
        """One row's cells; where all placements are the same, it was measured once."""
        row = [self.results.get(Cell(kind, ratio, column)) for column in self.columns]
        if ratio in SAME:
            once = next((measured for measured in row if measured is not None), None)
            return [once] * len(row)
        return row

    def title(self, kind: str) -> str:
        """Above a table."""
        shift = f", shifting every {STRETCH} tokens" if kind == SHIFTING else ""
        return f"{kind} routing ({self.routings[kind].source}{shift})"

    def header(self) -> list[str]:
        """Of every table."""
        last = ["adaptive ÷ best"] if self._judges else []
        return ["GPU expert ratio", *self.columns, *last]

    def rows(self, kind: str) -> list[list[str]]:
        """Tokens per second, as :meth:`Measured.text` has them."""
        found = []
        for ratio in self.ratios:
            row = self.row(kind, ratio)
            cells = ["" if m is None else m.text() for m in row]
            found.append(
                [f"{100 * ratio:g} %", *cells, *([self._judged(row)] if self._judges else [])]
            )
        return found

    @property
    def _judges(self) -> bool:
        return "adaptive" in self.columns and len(self.columns) > 1

    def _judged(self, row: Sequence[Measured | None]) -> str:
        """Of medians; round by round where there are several, against the best of the others."""
        place = self.columns.index("adaptive")
        adaptive, others = row[place], [*row[:place], *row[place + 1 :]]
        known = [measured for measured in others if measured is not None]
        if adaptive is None or len(known) < len(others):
            return ""
        rounds, *others_rounds = (self._rounds(measured) for measured in (adaptive, *known))
        if len(rounds) == 1 or any(len(other) != len(rounds) for other in others_rounds):
            return f"{min(1.0, adaptive.rate / max(measured.rate for measured in known)):.3f}"
        ratios = [
            Summary.of([a / b for a, b in zip(rounds, other, strict=True)])
            for other in others_rounds
        ]
        least = min(ratios, key=lambda ratio: ratio.median)
        return f"{least.median:.3f} ({least.low:.2f} to {least.high:.2f})"

    def _rounds(self, measured: Measured) -> list[float]:
        """The mean of each round's runs: what disturbs a host for a while is in all of a round."""
        rates, runs = measured.rates, self.runs
        return [statistics.fmean(rates[at : at + runs]) for at in range(0, len(rates), runs)]

    def checks(self) -> list[tuple[float, Measured, Measured]]:
        """Ratio, the cell, and the same on an engine that was started at that ratio."""
        pairs = []
        for cell, alone in self.results.items():
            if cell.check and (inside := self._inside(cell)) is not None:
                pairs.append((cell.ratio, inside, alone))
        return sorted(pairs, key=lambda pair: pair[0])

    def _inside(self, check: Cell) -> Measured | None:
        """The cell of the table that a check is compared with."""
        if check.ratio in SAME:
            return self.row(check.kind, check.ratio)[0]
        return self.results.get(Cell(check.kind, check.ratio, check.column))

    def check_lines(self) -> list[str]:
        """One for each check."""
        return [
            f"{100 * ratio:g} %, uniform: {inside.rate:.2f} tokens/s in the table, "
            f"{alone.rate:.2f} on an engine started at that ratio "
            f"({inside.rate / alone.rate:.3f})"
            for ratio, inside, alone in self.checks()
        ]

    def markdown(self) -> str:
        """Both tables, the checks, and what routing they were measured with."""
        lines = ["# Tokens per second by share of experts in slots", ""]
        lines += [f"- {name}: {value}" for name, value in self.request.items()]
        for kind in self.kinds:
            lines += ["", f"## {self.title(kind)}", "", _line(self.header())]
            lines.append(_line(["---:"] * len(self.header())))
            lines += [_line(row) for row in self.rows(kind)]
        if any(ratio in SAME for ratio in self.ratios):
            lines += ["", "At 0 % and at 100 % all columns are one placement, measured once."]
        if self.checks():
            lines += ["", "## Checked against engines started at a ratio", ""]
            lines += [f"- {line}" for line in self.check_lines()]
        for kind in self.kinds:
            lines += self._ranks(kind)
        return "\n".join(lines) + "\n"

    def _ranks(self, kind: str) -> list[str]:
        ranks = self.routings[kind].ranks
        if ranks is None:
            return []
        first = " of the stretch before all others" if kind == SHIFTING else ""
        lines = ["", f"## Most likely experts{first}, {kind} routing", "", "```"]
        for layer, order in enumerate(ranks[0]):
            lines.append(f"{layer:3}: {' '.join(str(expert) for expert in order[:_RANKS_SHOWN])}")
        return [*lines, "```"]

    def as_json(self) -> dict[str, Any]:
        """All of it, with the whole permutations."""
        return {
            "request": dict(self.request),
            "cells": [
                asdict(cell) | asdict(measured) | {"rate": measured.rate, "spread": measured.spread}
                for cell, measured in self.results.items()
            ],
            "checks": [
                {"ratio": ratio, "table": inside.rate, "alone": alone.rate}
                for ratio, inside, alone in self.checks()
            ],
            "ranks": {
                kind: None if routing.ranks is None else routing.ranks.tolist()
                for kind, routing in self.routings.items()
            },
        }


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
