"""`ktd bench table` with real engines: hit rates are those of the placement, and a run goes on."""

import json
import subprocess
import sys

import numpy as np
import pytest

from ktd.bench.table.placements import cell_placement
from ktd.bench.table.routing import (
    SHIFTING,
    STATIONARY,
    LayerSizes,
    counts,
    recorded_routing,
)
from tests.cli.running import environment
from tests.live import MODEL, ROOT

pytestmark = pytest.mark.engine
TRACE = ROOT / "models" / "routing-trace.npz"
SIZES = LayerSizes(layers=6, experts=32, top_k=4)


def table(*more):
    # Where routing shifts, three runs are three stretches: each of the trace's phases once.
    command = [sys.executable, "-m", "ktd", "bench", "table", str(MODEL), "--json"]
    command += ["--trace", str(TRACE), "--batch", "2", "--runs", "3", "--tokens", "200"]
    command += ["--learn", "1500", "--output-tokens", "200"]
    command += ["--settle-policy", "300", "--settle-seconds", "5", *more]
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def test_cells_are_placements_of_one_engine(tmp_path):
    """Each computes in slots what its placement holds, of either routing; policies come near what
    frequency knows, also after a change of the ratio; the engine started at a ratio agrees, and
    what is done is not measured again."""
    file, plot, markdown = (tmp_path / name for name in ("cells.jsonl", "t.svg", "t.md"))
    options = ["--ratios", "0,25,40,100", "--columns", "uniform,frequency,adaptive"]
    options += ["--resume", str(file), "--checks", "1"]
    first, _ = table(*options, "--stop-after", "0.0001")
    assert first["complete"] is False
    assert first["cells"] == []
    value, said = table(*options, "--plot", str(plot), "--markdown", str(markdown))
    assert value["complete"] is True
    assert said.count("starting an engine") == 2
    cells = {
        (c["ratio"], c["column"], c["check"]): c for c in value["cells"] if c["kind"] == STATIONARY
    }
    assert len(value["cells"]) == 2 * (2 * 3 + 2) + 1
    routing = recorded_routing(STATIONARY, TRACE, SIZES, 0)
    for column in ("uniform", "frequency"):
        chosen = cell_placement(column, 0.25, SIZES, 32, routing.known)
        inside = sum(routing.known[n][list(layer)].sum() for n, layer in enumerate(chosen))
        wanted = inside / routing.known.sum()
        assert cells[0.25, column, False]["hit_rate"] == pytest.approx(wanted, abs=0.06)
    assert cells[0.25, "uniform", True]["hit_rate"] == pytest.approx(
        cells[0.25, "uniform", False]["hit_rate"], abs=0.06
    )
    assert (
        cells[0.25, "adaptive", False]["hit_rate"] > cells[0.25, "uniform", False]["hit_rate"] + 0.1
    )
    for ratio in (0.25, 0.4):
        learned, known = (
            cells[ratio, name, False]["hit_rate"] for name in ("adaptive", "frequency")
        )
        assert learned > known - 0.1
    shifted = recorded_routing(SHIFTING, TRACE, SIZES, 0)
    everything = counts(shifted.ids, 32)
    chosen = cell_placement("frequency", 0.25, SIZES, 32, shifted.known)
    inside = sum(everything[n][list(layer)].sum() for n, layer in enumerate(chosen))
    found = next(
        c["hit_rate"]
        for c in value["cells"]
        if (c["kind"], c["ratio"], c["column"]) == (SHIFTING, 0.25, "frequency")
    )
    assert found == pytest.approx(inside / everything.sum(), abs=0.1)
    assert cells[0.0, "uniform", False]["hit_rate"] == 0.0
    assert cells[1.0, "uniform", False]["hit_rate"] == 1.0
    assert all(np.min(cell["rates"]) > 0 for cell in value["cells"])
    assert "adaptive ÷ best" in markdown.read_text()
    assert plot.read_text().count("<polyline") == 6
    again, said = table(*options)
    assert "0 of 17 cells to measure" in said
    assert again["cells"] == value["cells"]
