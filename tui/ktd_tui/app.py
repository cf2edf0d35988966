"""The monitor: joins the session, the dashboard and the dialogs."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import App
from textual.binding import Binding, BindingType

from ktd_tui.messages import (
    ActivityArrived,
    Link,
    LinkChanged,
    PlacementArrived,
    PlanArrived,
    Refused,
    StatusArrived,
    SwapArrived,
)
from ktd_tui.screens.confirm import ConfirmScreen, plan_text
from ktd_tui.screens.dashboard import Dashboard
from ktd_tui.screens.help import HelpScreen
from ktd_tui.screens.strategies import StrategyScreen
from ktd_tui.session import Connect, Session


class MonitorApp(App[None]):
    """`ktd top`.

    Args:
        connect: Opens a client; called again after a lost connection.
        where: What to call the daemon.
    """

    CSS_PATH = "app.tcss"
    TITLE = "ktd"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("a", "choose", "Apply"),
        Binding("u", "undo", "Undo"),
        Binding("question_mark,f1", "help", "Help", key_display="?"),
        Binding("q", "quit", "Quit"),
    ]

    def __init__(self, connect: Connect, where: str) -> None:
        super().__init__()
        self.session = Session(connect, self.post_message, where)
        self.dashboard = Dashboard()
        self._link = Link.CONNECTING

    async def on_mount(self) -> None:
        """Shows the dashboard and, once its widgets are there, begins to follow the daemon."""
        await self.push_screen(self.dashboard)
        self.run_worker(self.session.run(), group="session", name="session")

    def on_link_changed(self, message: LinkChanged) -> None:
        """Remembers whether anything can be asked for."""
        self._link = message.link
        self.dashboard.show_link(message)

    def on_status_arrived(self, message: StatusArrived) -> None:
        """Passes the status on."""
        self.dashboard.show_status(message.status)

    def on_activity_arrived(self, message: ActivityArrived) -> None:
        """Passes the statistics on."""
        self.dashboard.show_activity(message.activity)

    def on_placement_arrived(self, message: PlacementArrived) -> None:
        """Passes the placement on."""
        self.dashboard.show_placement(message.placement)

    def on_swap_arrived(self, message: SwapArrived) -> None:
        """Passes a swap's progress on."""
        self.dashboard.show_swap(message.swap)

    def on_refused(self, message: Refused) -> None:
        """Tells why something was not done."""
        self.notify(message.reason, title=f"{message.what} was refused", severity="error")

    def on_plan_arrived(self, message: PlanArrived) -> None:
        """Shows the plan and asks."""
        plan = message.plan
        if not plan.moves:
            self.notify(f"{message.strategy} moves nothing: it is the placement of now")
            return

        def answer(go_on: bool | None) -> None:
            if go_on:
                self.run_worker(self.session.apply(plan), group="change")

        title = f"Apply {message.strategy}?"
        self.push_screen(ConfirmScreen(title, plan_text(plan), "Apply"), answer)

    def action_choose(self) -> None:
        """Asks for a strategy and plans it."""
        if not self._may_change():
            return

        def chosen(strategy: str | None) -> None:
            if strategy is not None:
                self.run_worker(self.session.plan(strategy), group="plan", exclusive=True)

        self.push_screen(StrategyScreen(), chosen)

    def action_undo(self) -> None:
        """Asks, then goes back to the placement before the newest change."""
        if not self._may_change():
            return

        def answer(go_on: bool | None) -> None:
            if go_on:
                self.run_worker(self.session.undo(), group="change")

        body = Text("The placement before the newest change comes back; requests go on meanwhile.")
        self.push_screen(ConfirmScreen("Undo the newest change?", body, "Undo"), answer)

    def action_help(self) -> None:
        """Opens the help page."""
        self.push_screen(HelpScreen())

    def _may_change(self) -> bool:
        if self._link is not Link.CONNECTED:
            self.notify("The daemon is not connected.", severity="warning")
            return False
        if self.dashboard.progress.running:
            self.notify("A swap is running; wait until it has ended.", severity="warning")
            return False
        return not isinstance(self.screen, (ConfirmScreen, StrategyScreen, HelpScreen))
