"""`ktd bench table --resume`: files of earlier releases."""

from __future__ import annotations

import pytest

from ktd.bench.table.cells import Cell, Measured, ResultFile
from ktd.bench.table.routing import SHIFTING, STATIONARY
from ktd.errors import ConfigError


def test_a_file_of_before_there_were_rounds_goes_on(tmp_path):
    path = tmp_path / "cells.jsonl"
    ResultFile(path, {"model": "m"})
    ResultFile(path, {"model": "m", "rounds": 1})
    with pytest.raises(ConfigError, match="was measured with rounds 1, not 2"):
        ResultFile(path, {"model": "m", "rounds": 2})


@pytest.mark.parametrize("kind", [SHIFTING, STATIONARY])
def test_cells_that_met_the_known_stretch_again_are_not_mixed_with_others(tmp_path, kind):
    """As files have them of before 2026-11-30; what did not shift goes on."""
    path = tmp_path / "cells.jsonl"
    ResultFile(path, {"model": "m"}).add(Cell(kind, 0.5, "uniform"), Measured((9.0,), 0.5, 1.0))
    over = {"model": "m", "statistics where routing shifts": "of a stretch that is over"}
    if kind == STATIONARY:
        before = path.read_text()
        with pytest.raises(ConfigError, match="was measured with model m, not n"):
            ResultFile(path, over | {"model": "n"})
        assert path.read_text() == before
        ResultFile(path, over).add(Cell(SHIFTING, 0.5, "uniform"), Measured((8.0,), 0.5, 1.0))
        assert len(ResultFile(path, over).results) == 2
        with pytest.raises(ConfigError, match="of a stretch that is over, not of another"):
            ResultFile(path, over | {"statistics where routing shifts": "of another"})
        return
    with pytest.raises(ConfigError, match="of the first of its stretches, not of a stretch that"):
        ResultFile(path, over)
