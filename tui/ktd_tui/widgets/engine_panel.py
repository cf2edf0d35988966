"""What the engine is doing and which model it serves."""

from __future__ import annotations

from rich.text import Text
from textual.reactive import reactive
from textual.widget import Widget

from ktd.client import EnginePhase, EngineStatus

_MARKS = {
    "READY": ("●", "green"),
    "STARTING": ("◐", "yellow"),
    "LOADING": ("◐", "yellow"),
    "WARMING": ("◐", "yellow"),
    "DRAINING": ("◑", "yellow"),
    "STOPPING": ("◑", "yellow"),
    "BACKOFF": ("▲", "red"),
    "FAILED": ("✗", "red"),
    "STOPPED": ("○", "dim"),
}


def phase_name(status: EngineStatus) -> str:
    """For example ``READY``."""
    return EnginePhase.Name(status.phase).removeprefix("ENGINE_PHASE_")


class EnginePanel(Widget):
    """Two lines: phase, progress or message; the model."""

    DEFAULT_CSS = """
    EnginePanel {
        height: 4; width: 1fr; border: round $foreground 30%; padding: 0 1;
        text-wrap: nowrap; text-overflow: ellipsis;
    }
    """

    status: reactive[EngineStatus | None] = reactive(None)

    def __init__(self, *, id: str) -> None:  # noqa: A002 - Textual's name
        super().__init__(id=id)
        self.border_title = "engine"

    def render(self) -> Text:
        """The two lines."""
        status = self.status
        if status is None:
            return Text("waiting for the daemon", "dim")
        name = phase_name(status)
        mark, colour = _MARKS.get(name, ("?", "dim"))
        text = Text(no_wrap=True, overflow="ellipsis")
        text.append(f"{mark} {name}", "bold" if self.app.no_color else f"bold {colour}")
        text.append(f"  {self._doing(status)}\n")
        text.append(self._model(status), "dim")
        return text

    def _doing(self, status: EngineStatus) -> str:
        progress = status.progress
        if progress.bytes_total and status.phase != EnginePhase.ENGINE_PHASE_READY:
            done = 100 * progress.bytes_done / progress.bytes_total
            return f"{done:.0f} % of {progress.bytes_total / 2**30:.1f} GiB loaded"
        return status.message

    def _model(self, status: EngineStatus) -> str:
        model = status.model
        if not model.num_moe_layers:
            return ""
        name = model.served_name or model.path
        name = name.rstrip("/").rpartition("/")[2]
        isa = f", {status.ranks[0].isa}" if status.ranks else ""
        experts = model.expert_format
        if model.cpu_expert_format not in ("", experts):
            experts += f" quantised to {model.cpu_expert_format}"
        shape = f"{model.num_moe_layers}×{model.num_experts} {experts}{isa}"
        running = f", {status.requests_in_flight} running" if status.requests_in_flight else ""
        return f"{name}: {shape}{running}"
