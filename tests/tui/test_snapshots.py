"""What the monitor looks like; `pytest tests/tui --snapshot-update` accepts a changed look."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ktd.client import EnginePhase, SwapState
from ktd_tui.app import MonitorApp
from ktd_tui.messages import Link, LinkChanged, PlanArrived
from tests.tui import frames
from tests.tui.conftest import never

if TYPE_CHECKING:
    from textual.pilot import Pilot

SMALL = (80, 24)
LARGE = (140, 40)


async def fill(pilot: Pilot[None], layers: int = 6, experts: int = 32, slots: int = 8) -> None:
    app = pilot.app
    assert isinstance(app, MonitorApp)
    await pilot.pause()
    app.post_message(LinkChanged(Link.CONNECTED))
    await pilot.pause()
    app.dashboard.show_status(frames.status())
    app.dashboard.show_placement(frames.placement(layers, experts, slots))
    for _ in range(5):
        app.dashboard.show_activity(frames.activity(layers, experts))
    await pilot.pause()


class TestDashboard:
    """The main screen."""

    @pytest.mark.parametrize("size", [SMALL, LARGE], ids=["80x24", "140x40"])
    def test_a_serving_engine(self, snap_compare, still: MonitorApp, size: tuple[int, int]) -> None:
        """Phase, speed, hit rate and the map."""
        assert snap_compare(still, terminal_size=size, run_before=fill)

    def test_before_anything_arrives(self, snap_compare, still: MonitorApp) -> None:
        """Connecting is shown, nothing is made up."""
        assert snap_compare(still, terminal_size=SMALL)

    def test_a_lost_daemon(self, snap_compare, still: MonitorApp) -> None:
        """The banner says that what is shown is old."""

        async def lose(pilot: Pilot[None]) -> None:
            await fill(pilot)
            pilot.app.post_message(LinkChanged(Link.LOST, "No daemon is listening.", 4.0))
            await pilot.pause()

        assert snap_compare(still, terminal_size=SMALL, run_before=lose)

    def test_a_swap_and_conditions(self, snap_compare, still: MonitorApp) -> None:
        """Progress and what an operator should know, below the map."""

        async def move(pilot: Pilot[None]) -> None:
            await fill(pilot)
            ready = EnginePhase.ENGINE_PHASE_READY
            still.dashboard.show_status(frames.status(ready, "One.", "Two.", "Three.", "Four."))
            still.dashboard.show_swap(frames.swap())
            await pilot.pause()

        assert snap_compare(still, terminal_size=SMALL, run_before=move)

    def test_a_swap_that_failed(self, snap_compare, still: MonitorApp) -> None:
        """The reason is the daemon's."""

        async def fail(pilot: Pilot[None]) -> None:
            await fill(pilot)
            failed = frames.swap(SwapState.SWAP_STATE_FAILED)
            failed.error.message = "rank 1 could not copy"
            still.dashboard.show_swap(failed)
            await pilot.pause()

        assert snap_compare(still, terminal_size=SMALL, run_before=fail)

    def test_many_experts_share_cells(self, snap_compare, still: MonitorApp) -> None:
        """512 experts in 48 layers fit on a small screen."""

        async def many(pilot: Pilot[None]) -> None:
            await fill(pilot, layers=48, experts=512, slots=64)

        assert snap_compare(still, terminal_size=SMALL, run_before=many)

    def test_unfolded_experts_scroll(self, snap_compare, still: MonitorApp) -> None:
        """One cell for each; labels and the ruler stay in view."""

        async def scroll(pilot: Pilot[None]) -> None:
            await fill(pilot, layers=48, experts=128, slots=16)
            await pilot.press("z", "down", "down", "right", "right", "right", "right")
            await pilot.pause()

        assert snap_compare(still, terminal_size=SMALL, run_before=scroll)

    def test_no_colour(self, snap_compare, monkeypatch: pytest.MonkeyPatch) -> None:
        """NO_COLOR gets shades instead."""
        monkeypatch.setenv("NO_COLOR", "1")
        app = MonitorApp(never, "/run/ktd/ktd.sock")
        assert snap_compare(app, terminal_size=SMALL, run_before=fill)


class TestDialogs:
    """What opens over the main screen."""

    def test_help(self, snap_compare, still: MonitorApp) -> None:
        """One page that fits."""

        async def show(pilot: Pilot[None]) -> None:
            await fill(pilot)
            await pilot.press("question_mark")

        assert snap_compare(still, terminal_size=SMALL, run_before=show)

    def test_strategies(self, snap_compare, still: MonitorApp) -> None:
        """Each with what it does."""

        async def choose(pilot: Pilot[None]) -> None:
            await fill(pilot)
            await pilot.press("a")

        assert snap_compare(still, terminal_size=SMALL, run_before=choose)

    def test_a_plan(self, snap_compare, still: MonitorApp) -> None:
        """Sum, prediction, notes and moves; Cancel has the focus."""

        async def ask(pilot: Pilot[None]) -> None:
            await fill(pilot)
            pilot.app.post_message(PlanArrived("frequency", frames.plan()))
            await pilot.pause()

        assert snap_compare(still, terminal_size=SMALL, run_before=ask)
