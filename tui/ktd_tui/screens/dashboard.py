"""The main screen: hands values to widgets, and keeps what the grid needs from two messages."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.screen import Screen
from textual.widgets import Footer

from ktd.client import EngineStatus, Placement, Swap
from ktd_tui.activity import Activity
from ktd_tui.grid_model import GridRow
from ktd_tui.messages import LinkChanged
from ktd_tui.swaps import is_running
from ktd_tui.widgets.banner import Banner
from ktd_tui.widgets.conditions import Conditions
from ktd_tui.widgets.engine_panel import EnginePanel
from ktd_tui.widgets.expert_grid import ExpertGrid
from ktd_tui.widgets.meter import Meter
from ktd_tui.widgets.swap_progress import SwapProgress


class Dashboard(Screen[None]):
    """Everything at a glance, from 80 × 24 up."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("h", "toggle_heat", "Heat"),
        Binding("z", "toggle_fold", "Fold"),
    ]

    def __init__(self) -> None:
        super().__init__()
        # Held here and not looked up: a message may arrive while the screen is being taken apart.
        self.banner = Banner(id="banner")
        self.engine = EnginePanel(id="engine")
        self.speed = Meter("tokens/s", id="speed")
        self.hits = Meter("GPU hit rate", ceiling=1.0, id="hits")
        self.grid = ExpertGrid(id="grid")
        self.progress = SwapProgress(id="swap")
        self.conditions = Conditions(id="conditions")
        self._activity = Activity()
        self._placement: Placement | None = None
        self._swap: Swap | None = None
        self._recent = True

    def compose(self) -> ComposeResult:
        """Banner, three panels, the map, what moves, what is wrong, keys."""
        yield self.banner
        with Horizontal(id="panels"):
            yield self.engine
            yield self.speed
            yield self.hits
        yield self.grid
        yield self.progress
        yield self.conditions
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        """Names the map."""
        self._title_grid()

    def show_link(self, message: LinkChanged) -> None:
        """Shows or hides the banner."""
        self.banner.show_link(message.link, message.detail, message.retry_in)

    def show_status(self, status: EngineStatus) -> None:
        """Shows phase, model and conditions."""
        self.engine.status = status
        self.conditions.conditions = tuple(status.conditions)

    def show_activity(self, activity: Activity) -> None:
        """Shows speed, hit rate and heat."""
        if activity.engine_id != self._activity.engine_id:
            self.speed.clear()
            self.hits.clear()
        self._activity = activity
        self.speed.record(activity.tokens_per_second, f"{activity.tokens_per_second:.1f}")
        in_all = f"all {100 * activity.total_hit_rate:.1f} %"
        if activity.window_hit_rate is None:
            self.hits.remark = in_all
        else:
            rate = activity.window_hit_rate
            self.hits.record(rate, f"{100 * rate:.1f} %", in_all)
        self._show_grid()

    def show_placement(self, placement: Placement) -> None:
        """Shows which experts are in slots."""
        self._placement = placement
        self._title_grid()
        self._show_grid()

    def show_swap(self, swap: Swap) -> None:
        """Shows a swap's progress."""
        self.progress.swap = swap
        self._swap = swap
        self._show_grid()

    def action_toggle_heat(self) -> None:
        """Heat of the last seconds, or since the engine's start."""
        self._recent = not self._recent
        self._title_grid()
        self._show_grid()

    def action_toggle_fold(self) -> None:
        """All experts at once, or one cell for each."""
        self.grid.folded = not self.grid.folded

    def _title_grid(self) -> None:
        title = "experts: heat of the last seconds" if self._recent else "experts: heat since start"
        self.grid.border_title = title
        if self._placement is not None:
            slots = sum(layer.slots for layer in self._placement.layers)
            used = sum(len(layer.gpu_experts) for layer in self._placement.layers)
            total = sum(layer.num_experts for layer in self._placement.layers)
            self.grid.border_subtitle = (
                f"{self._placement.origin}, revision {self._placement.revision}: "
                f"{used} of {slots} slots used, {total} experts"
            )

    def _show_grid(self) -> None:
        placed = {layer.layer: layer for layer in self._placement.layers} if self._placement else {}
        heats = {layer.layer: layer for layer in self._activity.layers}
        on_gpu = self._on_gpu()
        rows = []
        for index in sorted(placed.keys() | heats.keys()):
            heat: tuple[float, ...] = ()
            if index in heats:
                heat = heats[index].recent if self._recent else heats[index].counts
            if not heat:
                heat = (0.0,) * placed[index].num_experts
            rows.append(GridRow(index, heat, frozenset(on_gpu.get(index, ()))))
        self.grid.rows = tuple(rows)

    def _on_gpu(self) -> dict[int, set[int]]:
        """The committed placement, and what a running swap has already moved."""
        if self._placement is None:
            return {}
        on_gpu = {layer.layer: set(layer.gpu_experts) for layer in self._placement.layers}
        if self._swap is not None and is_running(self._swap):
            for move in self._swap.moves[: self._swap.moves_done]:
                if move.HasField("evict"):
                    on_gpu[move.layer].discard(move.evict)
                if move.HasField("load"):
                    on_gpu[move.layer].add(move.load)
        return on_gpu
