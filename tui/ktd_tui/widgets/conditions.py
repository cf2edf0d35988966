"""What an operator should know; as many lines as there are conditions, at most three."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text
from textual.reactive import reactive
from textual.widget import Widget

from ktd.client import Condition

_MOST = 3


class Conditions(Widget):
    """The newest conditions, one a line; hidden when there is none."""

    DEFAULT_CSS = """
    Conditions {
        height: auto; max-height: 3; padding: 0 1; display: none;
        text-wrap: nowrap; text-overflow: ellipsis;
    }
    Conditions.any { display: block; }
    """

    conditions: reactive[Sequence[Condition]] = reactive((), layout=True)

    def watch_conditions(self, conditions: Sequence[Condition]) -> None:
        """Takes no room when all is well."""
        self.set_class(bool(conditions), "any")

    def render(self) -> Text:
        """The lines."""
        text = Text(no_wrap=True, overflow="ellipsis")
        newest = list(self.conditions)[-_MOST:]
        for index, condition in enumerate(reversed(newest)):
            text.append("\n" if index else "")
            text.append("! ", "bold" if self.app.no_color else "bold yellow")
            text.append(f"{condition.message} ")
            text.append(f"({condition.reason})", "dim")
        return text
