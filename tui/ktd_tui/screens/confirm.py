"""What a plan would do, and the question whether to do it."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Button, Label, Static

from ktd.client import Plan


class ConfirmScreen(ModalScreen[bool]):
    """Answers whether to go on.

    Args:
        title: The question.
        body: What it is about; may be long.
        verb: What the button that goes on says.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "dismiss(True)", "Yes"),
        Binding("n,escape,q", "dismiss(False)", "No"),
    ]

    def __init__(self, title: str, body: Text, verb: str) -> None:
        super().__init__()
        self._title = title
        self._body = body
        self._verb = verb

    def compose(self) -> ComposeResult:
        """The question, the details and two buttons; the harmless one has the focus."""
        with Vertical(classes="dialog"):
            yield Label(Text(self._title, "bold"))
            with VerticalScroll(can_focus=False):
                yield Static(self._body)
            with Horizontal(classes="buttons"):
                yield Button("Cancel (n)", id="no")
                yield Button(f"{self._verb} (y)", id="yes", variant="primary")

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Answers."""
        self.dismiss(event.button.id == "yes")


def plan_text(plan: Plan) -> Text:
    """A plan as people read it: the sum, the prediction, notes, and moves per layer."""
    text = Text()
    text.append(f"{len(plan.moves)} moves, {plan.bytes / 2**20:.1f} MiB to copy\n")
    if plan.hit_rate_before or plan.hit_rate_after:
        before, after = 100 * plan.hit_rate_before, 100 * plan.hit_rate_after
        text.append(f"GPU hit rate on what was seen: {before:.1f} % → {after:.1f} %\n")
    for note in plan.notes:
        text.append(f"! {note}\n")
    for layer in sorted({move.layer for move in plan.moves}):
        moves = [move for move in plan.moves if move.layer == layer]
        loads = " ".join(f"+{move.load}" for move in moves if move.HasField("load"))
        evicts = " ".join(f"-{move.evict}" for move in moves if move.HasField("evict"))
        text.append(f"L{layer:<4}", "dim")
        text.append(f"{loads}  {evicts}\n")
    return text
