"""A number with its recent history as a sparkline."""

from __future__ import annotations

from collections import deque

from rich.text import Text
from textual.reactive import reactive
from textual.widget import Widget

_BARS = "▁▂▃▄▅▆▇█"
_KEPT = 240


class Meter(Widget):
    """Two lines: the value and a remark, then the history.

    Args:
        title: Shown on the border.
        ceiling: Value of a full bar; None takes the highest one in sight.
        id: The widget's id.
    """

    DEFAULT_CSS = """
    Meter {
        height: 4; width: 22; border: round $foreground 30%; padding: 0 1;
        text-wrap: nowrap; text-overflow: ellipsis;
    }
    """

    value: reactive[str] = reactive("–")
    remark: reactive[str] = reactive("")

    def __init__(self, title: str, *, ceiling: float | None = None, id: str) -> None:  # noqa: A002 - Textual's name
        super().__init__(id=id)
        self.border_title = title
        self._ceiling = ceiling
        self._history: deque[float] = deque(maxlen=_KEPT)

    def record(self, value: float, text: str, remark: str = "") -> None:
        """Adds one sample and shows it."""
        self._history.append(value)
        self.value, self.remark = text, remark
        self.refresh()

    def clear(self) -> None:
        """Forgets the history, for another engine begins another story."""
        self._history.clear()
        self.value, self.remark = "–", ""

    def render(self) -> Text:
        """The two lines."""
        width = self.content_size.width
        text = Text(no_wrap=True, overflow="ellipsis")
        text.append(self.value, "bold")
        if self.remark:
            text.append(f"  {self.remark}", "dim")
        text.append("\n")
        text.append(self._bars(width), "" if self.app.no_color else "cyan")
        return text

    def _bars(self, width: int) -> str:
        shown = list(self._history)[-width:] if width else []
        top = self._ceiling if self._ceiling is not None else max(shown, default=0.0)
        if top <= 0:
            return _BARS[0] * len(shown)
        steps = len(_BARS) - 1
        return "".join(_BARS[min(steps, round(value / top * steps))] for value in shown)
