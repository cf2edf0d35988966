"""Choosing a strategy to plan."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Label, OptionList
from textual.widgets.option_list import Option

STRATEGIES = {
    "frequency": "the experts that the statistics say are used most",
    "uniform": "the same number in every layer, lowest ids first",
    "front-loading": "whole layers, from the first on",
    "random": "a fixed random choice, to compare against",
}


class StrategyScreen(ModalScreen[str | None]):
    """Answers with a strategy's name, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q", "dismiss(None)", "Back")]

    def compose(self) -> ComposeResult:
        """A list of strategies."""
        with Vertical(classes="dialog"):
            yield Label("Plan which strategy? Nothing moves until you confirm.")
            yield OptionList(
                *(Option(f"{name:<14} {what}", id=name) for name, what in STRATEGIES.items())
            )

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Hands the choice to the app."""
        self.dismiss(event.option.id)
