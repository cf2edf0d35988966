"""What the screen shows and which keys there are."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

_TEXT = """\
[b]The map[/b]  One line for each MoE layer, one cell for each expert. Brightness says how
much of the layer's work an expert gets; a dot says that it is in a GPU slot.
Bright cells without a dot are work that the CPU does.
With many experts, neighbours share a cell: • most of them are in slots, · some.

[b]Keys[/b]
  a        apply a strategy: plan it, look at the plan, confirm
  u        undo the newest change of the placement
  h        heat of the last seconds, or since the engine's start
  z        fold the map so that all experts fit, or unfold it and scroll
  arrows   scroll the map
  ? F1     this page
  q        quit; the daemon goes on

[b]Numbers[/b]
  tokens/s       tokens that decode steps made in the last sample
  GPU hit rate   share of (token, expert) pairs that a GPU slot computed
"""


class HelpScreen(ModalScreen[None]):
    """One page; any of its keys leads back."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,question_mark,f1,enter", "dismiss(None)", "Back")
    ]

    def compose(self) -> ComposeResult:
        """The page."""
        with VerticalScroll(classes="dialog"):
            yield Static(_TEXT)
