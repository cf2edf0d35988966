"""What the screen shows and which keys there are."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

_TEXT = """\
[b]The map[/b]
One line for each MoE layer, one cell for each expert. Brighter: more of
the layer's work (by the square root). A dot: the expert is in a GPU
slot. Bright without a dot is work that the CPU does.

[b]Keys[/b]
a       plan a strategy, look at the plan, confirm
u       undo the newest change of the placement
h       heat of the last seconds, or since the engine's start
z       fold the map so that all experts fit, or unfold it
arrows  scroll the map
q       quit; the daemon goes on

[b]Numbers, of the last half second[/b]
tokens/s      tokens that decode steps made
GPU hit rate  share of (token, expert) pairs that GPU slots computed
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
