"""The monitor's pure parts: heat, cells and the statistics stream."""

from __future__ import annotations

import pytest

from ktd.client import LayerCounts, StatsSnapshot
from ktd_tui import activity as activity_module
from ktd_tui.activity import ActivityBoard
from ktd_tui.grid_model import GridRow, Layout, cells
from ktd_tui.messages import ActivityArrived, PlanArrived, StatusArrived
from ktd_tui.palette import HEAT, heat_index, mark_colour, shade
from tests.tui import frames


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_heat_grows_in_lightness_and_marks_stay_readable() -> None:
    """So that it reads the same in grey: each step lighter, each mark at 3:1 contrast or more."""
    levels = [luminance(colour) for colour in HEAT[1:]]
    assert levels == sorted(levels)
    for index, colour in enumerate(HEAT):
        light, dark = sorted((luminance(colour), luminance(mark_colour(index))), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 3


def test_only_nothing_is_cold_and_the_hottest_is_last() -> None:
    """A single pair in a million is not nothing."""
    assert heat_index(0.0) == 0
    assert heat_index(1e-9) == 1
    assert heat_index(1.0) == len(HEAT) - 1
    assert [shade(0), shade(len(HEAT) - 1)] == [" ", "█"]
    assert shade(1) != " "


@pytest.mark.parametrize(
    ("experts", "columns", "layout"),
    [
        (32, 64, Layout(1, 2)),
        (32, 63, Layout(1, 1)),
        (32, 32, Layout(1, 1)),
        (33, 32, Layout(2, 1)),
        (512, 70, Layout(8, 1)),
        (8, 0, Layout(8, 1)),
    ],
)
def test_the_layout_is_the_roomiest_that_fits(experts: int, columns: int, layout: Layout) -> None:
    """Two columns a cell, then one, then shared cells."""
    assert Layout.fitting(experts, columns) == layout
    assert layout.columns(experts) <= max(1, columns)


def test_shared_cells_add_heat_and_average_residency() -> None:
    """The last cell may have fewer experts."""
    row = GridRow(0, (4.0, 0.0, 0.0, 0.0, 1.0), {0, 1, 4})
    found = cells(row, Layout(2, 1))
    assert [cell.resident for cell in found] == [1.0, 0.0, 1.0]
    assert [cell.heat for cell in found] == [heat_index(1.0), 0, heat_index(0.25)]


def test_a_layer_without_work_is_cold() -> None:
    """No division by zero."""
    assert {cell.heat for cell in cells(GridRow(0, (0.0,) * 4), Layout(1, 2))} == {0}


def counts(layer: int, gpu: list[int], cpu: list[int], experts: list[int] = ()) -> LayerCounts:
    return LayerCounts(layer=layer, gpu=gpu, cpu=cpu, experts=experts)


def test_deltas_are_absolute_counts_of_what_changed() -> None:
    """Only the named experts change; recent heat is what came in between."""
    board = ActivityBoard()
    full = StatsSnapshot(full=True, engine_id="a", layers=[counts(3, [1, 0, 5], [0, 2, 0])])
    first = board.update(full)
    assert first.layers[0].counts == (1, 2, 5)
    assert first.layers[0].recent == (0.0, 0.0, 0.0)
    delta = StatsSnapshot(engine_id="a", layers=[counts(3, [4], [2], experts=[1])])
    second = board.update(delta)
    assert second.layers[0].counts == (1, 6, 5)
    assert second.layers[0].recent[1] == pytest.approx(4, rel=0.01)


def test_recent_heat_halves_in_its_half_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the clock, not by the number of samples."""
    now = [100.0]
    monkeypatch.setattr(activity_module.time, "monotonic", lambda: now[0])
    board = ActivityBoard()
    board.update(StatsSnapshot(full=True, engine_id="a", layers=[counts(0, [0], [0])]))
    delta = StatsSnapshot(engine_id="a", layers=[counts(0, [8], [0], experts=[0])])
    board.update(delta)
    now[0] += activity_module._HALF_LIFE
    assert board.update(delta).layers[0].recent == (4.0,)


def test_another_engine_begins_another_story() -> None:
    """Counts start again, and are not taken for a change."""
    board = ActivityBoard()
    board.update(StatsSnapshot(full=True, engine_id="a", layers=[counts(0, [9], [9])]))
    found = board.update(StatsSnapshot(full=True, engine_id="b", layers=[counts(0, [1], [0])]))
    assert found.layers[0].counts == (1,)
    assert found.layers[0].recent == (0.0,)


def test_bursts_replace_their_own_kind_only() -> None:
    """A newer sample makes an older one worthless; a plan is never lost."""
    sample = ActivityArrived(frames.activity())
    assert sample.can_replace(ActivityArrived(frames.activity()))
    assert not sample.can_replace(StatusArrived(frames.status()))
    plan = PlanArrived("uniform", frames.plan())
    assert not plan.can_replace(PlanArrived("random", frames.plan()))
