"""`scripts/gpu_host/table_and_swaps.py`: which cells of a table are measured, and in what order."""

import importlib
from argparse import ArgumentTypeError, Namespace
from pathlib import Path

import pytest

from ktd.bench.table import measurement
from ktd.bench.table.cells import Cell, planned
from ktd.bench.table.routing import KINDS, SHIFTING, STATIONARY

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = ("uniform", "frequency", "adaptive")
CELLS = planned(KINDS, (0.0, 0.1, 0.5, 0.9), COLUMNS, 1)


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "gpu_host"))
    return importlib.import_module("table_and_swaps")


def test_all_cells_are_measured_as_planned(script):
    """Unless fewer are asked for."""
    assert script.chosen(CELLS, Namespace(shifting_ratios=None, stationary_columns=None)) == [
        *(cell for cell in CELLS if cell.kind == STATIONARY),
        *(cell for cell in CELLS if cell.kind == SHIFTING),
    ]


def test_shifting_rows_come_as_they_are_asked_for(script):
    """A run whose time is over has the ones that matter; checks are never left out."""
    asked = Namespace(
        shifting_ratios=script.ratios_of("10,90"),
        stationary_columns=script.columns_of("frequency,adaptive"),
    )
    found = script.chosen(CELLS, asked)
    rows = list(dict.fromkeys((cell.kind, cell.ratio) for cell in found if not cell.check))
    assert rows == [
        *((STATIONARY, ratio) for ratio in (0.9, 0.5, 0.1, 0.0)),
        *((SHIFTING, ratio) for ratio in (0.1, 0.9)),
    ]
    assert [cell.column for cell in found if (cell.kind, cell.ratio) == (SHIFTING, 0.1)] == [
        *COLUMNS
    ]
    # With nothing in slots all columns are one, which is measured under the first one's name.
    columns = {cell.column for cell in found if cell.kind == STATIONARY and not cell.check}
    assert columns == {"uniform", "frequency", "adaptive"}
    assert Cell(STATIONARY, 0.1, "uniform") not in found
    assert [cell for cell in found if cell.check] == [cell for cell in CELLS if cell.check]


def test_the_time_counts_from_when_measuring_may_begin(script, monkeypatch):
    """Not what went by while the host did other things."""
    monkeypatch.setattr(measurement.time, "monotonic", lambda: 1000.0)
    bench = object.__new__(script.WithSwaps)
    bench._deadline = None
    bench.put_off(300.0)
    bench._check_time()
    bench._deadline = 900.0
    with pytest.raises(measurement.OutOfTime):
        bench._check_time()
    bench.put_off(300.0)
    bench._check_time()


def test_a_column_that_there_is_none_of_is_named(script):
    with pytest.raises(ArgumentTypeError, match="there is no column 'some'"):
        script.columns_of("adaptive,some")
