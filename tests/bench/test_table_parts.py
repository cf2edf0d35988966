"""The parts of `ktd bench table`: routing, placements, the file of results, and what is printed."""

import contextlib
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from ktd.bench.table.cells import Cell, Measured, ResultFile, planned, rows_of
from ktd.bench.table.measurement import Engines, Load, OutOfTime, TableBench
from ktd.bench.table.placements import COLUMNS, budget_of, cell_placement, slots_needed
from ktd.bench.table.plot import table_svg
from ktd.bench.table.report import Report
from ktd.bench.table.routing import (
    SHIFTING,
    STATIONARY,
    LayerSizes,
    counts,
    recorded_routing,
    zipf_routing,
)
from ktd.cli.exit_codes import ExitCode
from ktd.cli.program import run
from ktd.errors import ConfigError
from tests.live import MODEL, ROOT

SIZES = LayerSizes(layers=3, experts=32, top_k=4)
TRACE = ROOT / "models" / "routing-trace.npz"
TINY = LayerSizes(layers=6, experts=32, top_k=4)


def test_a_token_chooses_different_experts():
    """As a router does."""
    ids = zipf_routing(STATIONARY, SIZES, 0).ids
    assert ids.shape == (8000, 3, 4)
    assert (np.diff(np.sort(ids, axis=2), axis=2) > 0).all()


def test_zipf_weights_fall_with_the_rank():
    """The first rank is drawn 2 ** 0.8 times as often as the second, less what draws without
    replacement take off; the order of counts is that of the ranks."""
    routing = zipf_routing(STATIONARY, SIZES, 1)
    for layer, order in enumerate(routing.ranks[0]):
        by_rank = routing.known[layer][order]
        assert 1.2 < by_rank[0] / by_rank[1] < 2**0.8
        assert by_rank[:4].sum() > 3 * by_rank[-8:].sum()
        assert np.corrcoef(by_rank, np.arange(32) ** 0.5)[0, 1] < -0.8


def test_each_layer_has_other_ranks_and_a_seed_gives_the_same():
    """A table can be measured again, and hot experts are not the lowest ids."""
    one, same, other = (zipf_routing(STATIONARY, SIZES, seed) for seed in (5, 5, 6))
    assert (one.ids == same.ids).all()
    assert (one.ids != other.ids).any()
    assert (one.ranks[0, 0] != one.ranks[0, 1]).any()


def test_shifting_routing_changes_every_500_tokens():
    """And what frequency knows, the stretch before, does not come again."""
    routing = zipf_routing(SHIFTING, SIZES, 0)
    assert len(routing.ids) == 500 * (len(routing.ranks) - 1) == 8000
    assert routing.known.sum() == 500 * SIZES.layers * SIZES.top_k
    shares = [counts(part, 32).ravel() for part in np.split(routing.ids, 16)]
    for one in (routing.known.ravel(), shares[0]):
        alike = [np.corrcoef(one, share)[0, 1] for share in shares if share is not one]
        assert max(alike) < 0.5
    likeliest = routing.known.argmax(axis=1)
    assert all(
        expert in order[:8] for expert, order in zip(likeliest, routing.ranks[0], strict=True)
    )
    halves = [counts(half, 32).ravel() for half in np.split(routing.ids[:500], 2)]
    assert np.corrcoef(*halves)[0, 1] > 0.7


def test_a_recording_is_shuffled_or_taken_in_turn():
    """500 tokens of each phase one after the other; all of them mixed where nothing shifts."""
    with np.load(TRACE) as file:
        phases = [file[name] for name in file.files]
    shifting = recorded_routing(SHIFTING, TRACE, TINY, 0)
    for turn in range(1, 7):
        begin = 500 * (turn // len(phases))
        wanted = phases[turn % len(phases)][begin : begin + 500]
        assert (shifting.ids[500 * (turn - 1) : 500 * turn] == wanted).all()
    assert (shifting.known == counts(phases[0][:500], 32)).all()
    stationary = recorded_routing(STATIONARY, TRACE, TINY, 0)
    first, last = (counts(part, 32).ravel() for part in np.split(stationary.ids, 2))
    assert np.corrcoef(first, last)[0, 1] > 0.98


def test_a_recording_of_another_model_is_refused(tmp_path):
    """And one that cannot shift."""
    with pytest.raises(ConfigError, match="no recording of this model: it has 6 layers"):
        recorded_routing(STATIONARY, TRACE, SIZES, 0)
    np.savez(tmp_path / "one.npz", prose=np.zeros((900, 6, 4), np.int16))
    with pytest.raises(ConfigError, match="needs three phases"):
        recorded_routing(SHIFTING, tmp_path / "one.npz", TINY, 0)
    short = {name: np.zeros((900, 6, 4), np.int16) for name in ("prose", "code")}
    np.savez(tmp_path / "short.npz", **short)
    with pytest.raises(ConfigError, match="the shortest of 900 tokens"):
        recorded_routing(SHIFTING, tmp_path / "short.npz", TINY, 0)


KNOWN = zipf_routing(STATIONARY, SIZES, 0).known


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_a_cell_uses_the_budget_of_its_ratio(column, ratio):
    """Whatever the strategy, and never more of a layer than it has slots."""
    for largest in (ratio, 1.0):
        slots = slots_needed(SIZES, largest)
        chosen = cell_placement(column, ratio, SIZES, slots, KNOWN)
        assert sum(map(len, chosen)) == budget_of(SIZES, ratio)
        assert max(map(len, chosen)) <= slots
        assert all(list(layer) == sorted(set(layer)) for layer in chosen)


def test_strategies_are_those_of_the_daemon_where_they_fit():
    """Front-loading fills layers; with fewer slots the first layers get what is left over."""
    whole = tuple(range(32))
    assert cell_placement("front-loading", 0.5, SIZES, 32, KNOWN) == (whole, whole[:16], ())
    assert cell_placement("front-loading", 0.5, SIZES, 20, KNOWN) == (
        whole[:20],
        whole[:20],
        whole[:8],
    )
    hot = cell_placement("frequency", 0.25, SIZES, 32, KNOWN)
    capped = cell_placement("frequency", 0.25, SIZES, 8, KNOWN)
    share = [
        sum(KNOWN[n][list(layer)].sum() for n, layer in enumerate(chosen))
        for chosen in (hot, capped)
    ]
    assert share[0] >= share[1] > 0.4 * KNOWN.sum()
    assert cell_placement("adaptive", 0.25, SIZES, 32, KNOWN) == cell_placement(
        "uniform", 0.25, SIZES, 32, KNOWN
    )


def measured(rate, spread=1.0):
    return Measured((rate - spread, rate, rate + spread), 0.5, 10.0)


def test_results_are_kept_and_read_again(tmp_path):
    """Also after a run that was killed while it wrote."""
    path, request = tmp_path / "cells.jsonl", {"model": "m", "seed": 1}
    one, other = Cell(STATIONARY, 0.1, "uniform"), Cell(STATIONARY, 0.1, "uniform", check=True)
    file = ResultFile(path, request)
    file.add(one, measured(5.0))
    file.add(other, measured(6.0))
    with path.open("a") as half:
        half.write('{"cell": {"kind": "stat')
    again = ResultFile(path, request)
    assert again.results == {one: measured(5.0), other: measured(6.0)}
    third = Cell(STATIONARY, 0.2, "uniform")
    again.add(third, measured(7.0))
    assert ResultFile(path, request).results == {**again.results, third: measured(7.0)}


def test_a_file_that_does_not_say_where_weights_came_from_is_continued(tmp_path):
    """As releases before wrote it; one of other weights is not."""
    path = tmp_path / "cells.jsonl"
    ResultFile(path, {"model": "m"}).add(Cell(STATIONARY, 0.1, "uniform"), measured(5.0))
    assert len(ResultFile(path, {"model": "m", "weights": "generated"}).results) == 1
    other = tmp_path / "other.jsonl"
    ResultFile(other, {"model": "m", "weights": "as in its checkpoint"})
    with pytest.raises(ConfigError, match="with weights as in its checkpoint, not generated"):
        ResultFile(other, {"model": "m", "weights": "generated"})


def test_a_cell_that_is_measured_again_has_both(tmp_path):
    """All rates count the same, and so does what was moved."""
    path, cell = tmp_path / "cells.jsonl", Cell(SHIFTING, 0.1, "adaptive")
    file = ResultFile(path, {"model": "m"})
    file.add(cell, Measured((4.0, 5.0), 0.5, 10.0, moved_bytes=8, move_calls=1, move_call_ms=2.0))
    file.add(cell, Measured((6.0,), 0.8, 16.0, moved_bytes=4, move_calls=3, move_call_ms=1.0))
    both = Measured((4.0, 5.0, 6.0), 0.6, 12.0, moved_bytes=12, move_calls=4, move_call_ms=1.25)
    assert file.results[cell].rates == both.rates
    assert file.results[cell].hit_rate == pytest.approx(both.hit_rate)
    assert ResultFile(path, {"model": "m"}).results == file.results
    assert file.results[cell].between_ms == both.between_ms
    assert (file.results[cell].move_calls, file.results[cell].move_call_ms) == (4, 1.25)


def test_rows_are_what_is_measured_in_turn():
    plan = planned((STATIONARY, SHIFTING), (0.0, 0.5), ("uniform", "adaptive"), 1)
    rows = rows_of(plan)
    assert [len(row) for row in rows] == [2, 1, 2, 1, 1]
    assert [cell for row in rows for cell in row] == plan


def test_results_of_an_older_release_are_read(tmp_path):
    """Which kept less of a cell."""
    path = tmp_path / "cells.jsonl"
    cell = {"kind": STATIONARY, "ratio": 0.1, "column": "uniform", "check": False}
    kept = {"rates": [4.0, 5.0, 6.0], "hit_rate": 0.5, "between_ms": 10.0}
    lines = ({"request": {"model": "m"}}, {"cell": cell, "measured": kept})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = ResultFile(path, {"model": "m"}).results
    assert found == {Cell(STATIONARY, 0.1, "uniform"): measured(5.0)}


def test_results_of_something_else_are_not_continued(tmp_path):
    """The sentence says what differs; a foreign file is left alone."""
    path = tmp_path / "cells.jsonl"
    ResultFile(path, {"model": "m", "seed": 1})
    with pytest.raises(ConfigError, match="was measured with seed 1, not 2"):
        ResultFile(path, {"model": "m", "seed": 2})
    path.write_text("hello\n")
    with pytest.raises(ConfigError, match="is no file of ktd bench table"):
        ResultFile(path, {"model": "m"})


def test_all_cells_are_planned_and_the_checks_are_spread():
    """Engines of their own come last; ends are measured once; a row's cells follow each other."""
    ratios = tuple(n / 10 for n in range(11))
    cells = planned((STATIONARY, SHIFTING), ratios, COLUMNS, 3)
    assert len(cells) == len(set(cells)) == 2 * (9 * 6 + 2) + 3
    for kind in (STATIONARY, SHIFTING):
        own = [cell for cell in cells if cell.kind == kind and not cell.check]
        assert [cell.column for cell in own] == [COLUMNS[0], *(9 * COLUMNS), COLUMNS[0]]
        assert [cell.ratio for cell in own] == sorted((cell.ratio for cell in own), reverse=True)
    assert [cell.ratio for cell in cells if cell.check] == [0.1, 0.5, 1.0]
    assert all(cell.column == "uniform" and cell.kind == STATIONARY for cell in cells[-3:])
    assert planned((STATIONARY,), (0.0,), COLUMNS, 3)[-1].check is False
    assert not any(cell.check for cell in planned((STATIONARY,), ratios, ("random",), 3))


@pytest.fixture(name="report")
def _report():
    """Everything but one cell."""
    ratios, columns = (0.0, 0.5, 1.0), ("uniform", "adaptive")
    results = {
        Cell(kind, ratio, column): measured(10 + 10 * ratio + 2 * (column == "adaptive"))
        for kind in (STATIONARY, SHIFTING)
        for ratio in ratios
        for column in (columns if ratio == 0.5 else columns[:1])
    }
    del results[Cell(SHIFTING, 0.5, "adaptive")]
    results[Cell(STATIONARY, 0.5, "uniform", check=True)] = measured(16.0)
    routings = {kind: zipf_routing(kind, SIZES, 0) for kind in (STATIONARY, SHIFTING)}
    request = {"model": "a model", "seed": 0}
    return Report(request, (STATIONARY, SHIFTING), ratios, columns, results, routings, 3)


def test_markdown_has_both_tables_the_checks_and_the_ranks(report):
    """Median and spread; how adaptive compares with the best; nothing for what is missing."""
    text = report.markdown()
    assert "| GPU expert ratio | uniform | adaptive | adaptive ÷ best |" in text
    assert "| 50 % | 15.00 ± 1.00 | 17.00 ± 1.00 | 1.000 |" in text
    assert "| 50 % | 15.00 ± 1.00 |  |  |" in text
    assert "| 100 % | 20.00 ± 1.00 | 20.00 ± 1.00 | 1.000 |" in text
    assert "all columns are one placement, measured once" in text
    assert "- 50 %, uniform: 15.00 tokens/s in the table, 16.00 on an engine started" in text
    assert "shifting routing (Zipf 0.8, seed 0, shifting every 500 tokens)" in text
    first = " ".join(str(expert) for expert in report.routings[STATIONARY].ranks[0, 0, :8])
    assert f"  0: {first}" in text
    assert "- model: a model" in text


def test_rounds_are_compared_one_by_one():
    """What disturbs one of them does so to both; the best of the others is not adaptive itself."""
    rates = {"uniform": (10.0, 5.0, 10.0), "frequency": (20.0, 10.0, 20.0)}
    rates["adaptive"] = (20.0, 11.0, 18.0)
    results = {
        Cell(STATIONARY, 0.5, column): Measured(found, 0.5, 10.0) for column, found in rates.items()
    }
    routings = {STATIONARY: zipf_routing(STATIONARY, SIZES, 0)}

    def judged(runs):
        report = Report({}, (STATIONARY,), (0.5,), tuple(rates), results, routings, runs)
        return report.rows(STATIONARY)[0][-1]

    assert judged(3) == "0.900"  # one round
    assert judged(1) == "1.000 (0.90 to 1.10)"
    results[Cell(STATIONARY, 0.5, "frequency")] = Measured((20.0, 10.0), 0.5, 10.0)
    assert judged(1) == "1.000", "a cell with fewer rounds has no partners: medians"


def test_one_run_has_no_spread():
    """A zero would say that it is known."""
    assert Measured((31.84,), 0.5, 1.0).text() == "31.84"
    assert Measured((9.0, 10.0, 11.0), 0.5, 1.0).text() == "10.00 ± 1.00"


def test_json_has_every_run_and_the_whole_permutations(report):
    """So that figures can be computed anew."""
    value = report.as_json()
    assert len(value["cells"]) == len(report.results)
    assert value["cells"][0]["rates"] == (9.0, 10.0, 11.0)
    assert value["checks"] == [{"ratio": 0.5, "table": 15.0, "alone": 16.0}]
    assert np.array(value["ranks"][SHIFTING]).shape == (17, 3, 32)


def test_a_check_with_everything_in_slots_is_compared_with_the_one_cell_of_that_row():
    """Which is of the first column, whichever that is."""
    columns = ("random", "uniform")
    cells = planned((STATIONARY,), (0.0, 1.0), columns, 3)
    results = {cell: measured(20.5 if cell.check else 20.0) for cell in cells}
    routings = {STATIONARY: zipf_routing(STATIONARY, SIZES, 0)}
    report = Report({}, (STATIONARY,), (0.0, 1.0), columns, results, routings, 3)
    assert report.as_json()["checks"] == [{"ratio": 1.0, "table": 20.0, "alone": 20.5}]


def test_the_plot_has_a_line_for_each_column_of_each_table(report):
    """Well-formed, and points are where the figures are."""
    root = ET.fromstring(table_svg(report))  # noqa: S314 - our own
    lines = root.findall(".//{*}polyline")
    assert len(lines) == 4
    assert [len(line.get("points").split()) for line in lines] == [3, 3, 3, 2]
    heights = [float(point.split(",")[1]) for point in lines[0].get("points").split()]
    assert heights == sorted(heights, reverse=True)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--running", "ktd.sock"], "leave out --running"),
        (["--columns", "best"], "--columns knows random, uniform"),
        (["--routings", ","], "--routings knows stationary, shifting"),
        (["--ratios", "50,101"], "is not a list of shares from 0 to 100"),
        (["--ratios", "x"], "invalid list of shares value"),
        (["--plot", "table.png"], "--plot table.png is not .svg"),
        (["--markdown", "/no/such/folder/t.md"], "there is no folder /no/such/folder"),
        (["--trace", "/no/such/trace.npz"], "/no/such/trace.npz cannot be read"),
    ],
)
def test_bad_arguments_end_before_an_engine_starts(arguments, sentence, capsys):
    """One sentence and the code for a wrong value."""
    assert run(["bench", "table", str(MODEL), *arguments]) == ExitCode.USAGE
    assert sentence in capsys.readouterr().err


def test_a_model_that_is_not_there_is_named(capsys):
    """As by every bench."""
    assert run(["bench", "table", str(Path("/no/such/model"))]) == ExitCode.USAGE
    assert "is not a folder" in capsys.readouterr().err


class Rounds(TableBench):
    """Measures nothing, in the order in which it would."""

    def __init__(self, file, rounds, stops_after=100):
        engines = Engines(Path("m"), (), SIZES, (0, 1, 2), "bf16")
        load = Load(1, 64, 448, 100, 2, 10, 10, 0.1, 10, 60.0, rounds=rounds)
        super().__init__(
            engines, load, {}, prompts=None, largest=0.5, file=file, progress=lambda _: None
        )
        self.order, self._stops_after = [], stops_after

    @contextlib.asynccontextmanager
    async def _started(self, *_):
        yield None

    async def _cell(self, run, cell):
        if len(self.order) == self._stops_after:
            raise OutOfTime
        self.order.append((cell.ratio, cell.column))
        return Measured((5.0, 6.0), 0.5, 10.0)


async def test_rounds_go_on_where_a_run_ended(tmp_path):
    """A row's cells in turn; a cell that has had fewer rounds than asked for is not done."""
    path, request = tmp_path / "cells.jsonl", {"model": "m", "rounds": 3}
    plan = planned((STATIONARY,), (0.25, 0.5), ("uniform", "adaptive"), 0)
    first = Rounds(ResultFile(path, request), 3, stops_after=5)
    assert not await first.run(plan)
    later = Rounds(ResultFile(path, request), 3)
    assert await later.run(plan)
    turn = [(0.5, "uniform"), (0.5, "adaptive")]
    assert first.order == [*turn, *turn, turn[0]]
    assert later.order == [turn[1], *[(0.25, "uniform"), (0.25, "adaptive")] * 3]
    assert await Rounds(ResultFile(path, request), 3).run(plan)
    assert all(len(one.rates) >= 6 for one in ResultFile(path, request).results.values())
    with pytest.raises(ConfigError, match="was measured with rounds 3, not 1"):
        ResultFile(path, {"model": "m", "rounds": 1})
