"""The monitor against a daemon: what is shown, what keys do, what a lost connection does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from ktd.client import KtdClient
from ktd.engine.status import EnginePhase
from ktd_tui.app import MonitorApp
from ktd_tui.messages import Link
from ktd_tui.screens.confirm import ConfirmScreen
from ktd_tui.screens.help import HelpScreen
from ktd_tui.screens.strategies import StrategyScreen
from tests.rpc.fake_daemon import fake_daemon
from tests.tui import frames

if TYPE_CHECKING:
    from pathlib import Path

    from textual.pilot import Pilot

    from tests.rpc.fake_daemon import FakeDaemon


def monitor(socket: Path) -> MonitorApp:
    return MonitorApp(lambda: KtdClient(socket), str(socket))


async def until(pilot: Pilot[None], condition: Callable[[], bool]) -> None:
    """Lets the app run until something holds; a test that waits in vain fails."""
    async with asyncio.timeout(30):
        while not condition():
            await pilot.pause(0.05)


def shown(app: MonitorApp) -> bool:
    return bool(app.dashboard.grid.rows)


async def test_engine_and_map_are_shown(daemon: FakeDaemon) -> None:
    """Phase, GPU markers and counts come from the daemon's streams."""
    daemon.traffic.decode(100)
    app = monitor(daemon.socket)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: shown(app))
        assert "READY" in str(app.dashboard.engine.render())
        await pilot.press("h")
        await until(pilot, lambda: any(sum(r.heat) > 0 for r in app.dashboard.grid.rows))
        rows = app.dashboard.grid.rows
        assert [row.layer for row in rows] == [0, 1, 2, 3]
        assert set(rows[0].gpu_experts) == {0, 1}
        assert sum(rows[0].heat) == 200
        assert not app.dashboard.banner.has_class("shown")


async def test_heat_follows_traffic(daemon: FakeDaemon) -> None:
    """What was before the monitor came is not recent; what comes is."""
    daemon.traffic.decode(100)
    app = monitor(daemon.socket)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: shown(app))
        grid = app.dashboard.grid
        assert sum(sum(row.heat) for row in grid.rows) == 0
        daemon.traffic.decode(10)
        await until(pilot, lambda: sum(sum(row.heat) for row in grid.rows) > 0)
        assert app.dashboard.speed.value != "–"


async def test_apply_shows_a_plan_and_moves_experts_after_a_yes(daemon: FakeDaemon) -> None:
    """a, a strategy, y: the swap is watched to its end and the markers move."""
    daemon.traffic.decode(300)
    app = monitor(daemon.socket)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: shown(app))
        await pilot.press("a")
        assert isinstance(app.screen, StrategyScreen)
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen))
        assert daemon.placement.revision == 1
        await pilot.press("y")
        progress = app.dashboard.progress
        await until(pilot, lambda: progress.swap is not None and not progress.running)
        assert "revision 2" in str(progress.render())
        grid = app.dashboard.grid
        await until(pilot, lambda: set(grid.rows[0].gpu_experts) != {0, 1})
        assert set(grid.rows[0].gpu_experts) == set(daemon.target.experts[0])


async def test_no_and_escape_change_nothing(daemon: FakeDaemon) -> None:
    """Only y goes on; Enter presses the button that has the focus, which is Cancel."""
    daemon.traffic.decode(300)
    app = monitor(daemon.socket)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: shown(app))
        for key in ("n", "escape", "enter"):
            await pilot.press("a")
            await pilot.press("enter")
            await until(pilot, lambda: isinstance(app.screen, ConfirmScreen))
            await pilot.press(key)
            await until(pilot, lambda: app.screen is app.dashboard)
    assert daemon.placement.revision == 1


async def test_undo_asks_and_goes_back(daemon: FakeDaemon) -> None:
    """u, y: the placement before the newest change is there again."""
    async with KtdClient(daemon.socket) as client:
        await client.apply_and_wait(strategy="random")
    app = monitor(daemon.socket)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: shown(app))
        await pilot.press("u")
        assert isinstance(app.screen, ConfirmScreen)
        await pilot.press("y")
        await until(pilot, lambda: daemon.placement.revision == 3)
        grid = app.dashboard.grid
        await until(pilot, lambda: set(grid.rows[0].gpu_experts) == {0, 1})


async def test_a_refusal_is_told(daemon: FakeDaemon) -> None:
    """Undo with nothing to undo: the daemon's sentence appears, the screen stays."""
    app = monitor(daemon.socket)
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await until(pilot, lambda: shown(app))
        await pilot.press("u", "y")
        await until(pilot, lambda: len(app._notifications) > 0)
        (note,) = app._notifications
        assert note.title == "undo was refused"
        assert app.screen is app.dashboard


async def test_a_swap_of_somebody_else_is_shown(daemon: FakeDaemon) -> None:
    """The monitor notices a swap that another client started."""
    copied = daemon.target.hold("wait_copied")
    app = monitor(daemon.socket)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: shown(app))
        async with KtdClient(daemon.socket) as client:
            await client.apply(strategy="random")
        progress = app.dashboard.progress
        await until(pilot, lambda: progress.running)
        await pilot.press("a")
        assert app.screen is app.dashboard  # One swap at a time: said, not tried.
        copied.set()
        await until(pilot, lambda: not progress.running)


async def test_a_daemon_that_comes_late_is_found(tmp_path: Path) -> None:
    """The monitor may be started first."""
    app = monitor(tmp_path / "ktd.sock")
    async with app.run_test(size=(80, 24)) as pilot:
        banner = app.dashboard.banner
        await until(pilot, lambda: app._link is Link.LOST)
        assert banner.has_class("shown")
        await pilot.press("a")
        assert app.screen is app.dashboard
        async with fake_daemon(tmp_path):
            await until(pilot, lambda: app._link is Link.CONNECTED)
            assert not banner.has_class("shown")


async def test_a_daemon_that_leaves_is_noticed_and_found_again(tmp_path: Path) -> None:
    """The last values stay, under a banner that says so."""
    app = monitor(tmp_path / "ktd.sock")
    async with app.run_test(size=(80, 24)) as pilot:
        async with fake_daemon(tmp_path):
            await until(pilot, lambda: shown(app))
        await until(pilot, lambda: app._link is Link.LOST)
        assert shown(app)
        async with fake_daemon(tmp_path):
            await until(pilot, lambda: app._link is Link.CONNECTED)


async def test_an_engine_that_dies_is_shown_and_keeps_its_map(daemon: FakeDaemon) -> None:
    """The daemon outlives its engine, and so does the monitor."""
    app = monitor(daemon.socket)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: shown(app))
        daemon.engine_lost("The engine was killed.")
        panel = app.dashboard.engine
        await until(pilot, lambda: "BACKOFF" in str(panel.render()))
        assert "The engine was killed." in str(panel.render())
        assert app._link is Link.CONNECTED


async def test_loading_progress_and_conditions_are_shown(tmp_path: Path) -> None:
    """A monitor of an engine that starts has no map yet, and says so."""
    async with fake_daemon(tmp_path, ready=False) as daemon:
        daemon.engine.set(phase=EnginePhase.LOADING, message="Loading weights.")
        daemon.engine.set_condition("CLAMPED", "The budget was clamped.")
        app = monitor(daemon.socket)
        async with app.run_test(size=(80, 24)) as pilot:
            panel = app.dashboard.engine
            await until(pilot, lambda: "LOADING" in str(panel.render()))
            assert app.dashboard.conditions.has_class("any")
            assert not shown(app)


async def test_help_opens_and_closes(daemon: FakeDaemon) -> None:
    """By its own key and by Escape."""
    app = monitor(daemon.socket)
    async with app.run_test(size=(80, 24)) as pilot:
        for key in ("question_mark", "escape"):
            await pilot.press("question_mark")
            assert isinstance(app.screen, HelpScreen)
            await pilot.press(key)
            assert app.screen is app.dashboard


async def test_fold_changes_the_layout(daemon: FakeDaemon) -> None:
    """z unfolds, z folds again."""
    app = monitor(daemon.socket)
    async with app.run_test(size=(12, 24)) as pilot:
        await until(pilot, lambda: shown(app))
        grid = app.dashboard.grid
        assert grid.fit.group > 1
        await pilot.press("z")
        assert grid.fit.group == 1
        await pilot.press("z")
        assert grid.fit.group > 1


async def test_q_quits(daemon: FakeDaemon) -> None:
    """And the daemon goes on."""
    app = monitor(daemon.socket)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: shown(app))
        await pilot.press("q")
        await pilot.pause()
        # What is still on its way finds the screen gone, and must not mind.
        app.dashboard.show_activity(frames.activity())
        app.dashboard.show_swap(frames.swap())
    assert app.return_code == 0
    async with KtdClient(daemon.socket) as client:
        assert (await client.status()).engine_id == "fake-1"
