"""The swap that is running, or how the last one ended: one line, hidden until there was one."""

from __future__ import annotations

from rich.text import Text
from textual.reactive import reactive
from textual.widget import Widget

from ktd.client import Swap, SwapState
from ktd_tui.swaps import is_running

_BAR = 24


class SwapProgress(Widget):
    """A bar while experts move, then the outcome."""

    DEFAULT_CSS = """
    SwapProgress {
        height: 1; padding: 0 1; display: none; text-wrap: nowrap; text-overflow: ellipsis;
    }
    SwapProgress.seen { display: block; }
    """

    swap: reactive[Swap | None] = reactive(None)

    def watch_swap(self, swap: Swap | None) -> None:
        """Shows itself from the first swap on."""
        self.set_class(swap is not None, "seen")

    @property
    def running(self) -> bool:
        """Whether experts are moving now."""
        return self.swap is not None and is_running(self.swap)

    def render(self) -> Text:
        """The line."""
        swap = self.swap
        if swap is None:
            return Text()
        if is_running(swap):
            return self._bar(swap)
        if swap.state == SwapState.SWAP_STATE_SUCCEEDED:
            moves = f"{swap.moves_total} move{'' if swap.moves_total == 1 else 's'}"
            text = f"✓ {swap.origin}: {moves}, revision {swap.revision}"
            return Text(text, self._colour("green"))
        if swap.state == SwapState.SWAP_STATE_CANCELLED:
            return Text(f"· {swap.origin}: cancelled, placement unchanged", self._colour("yellow"))
        reason = swap.error.message or "it failed"
        return Text(f"✗ {swap.origin}: rolled back: {reason}", self._colour("red"))

    def _bar(self, swap: Swap) -> Text:
        share = swap.moves_done / swap.moves_total if swap.moves_total else 0.0
        full = round(share * _BAR)
        text = Text(no_wrap=True)
        text.append(f"swap {swap.origin}  ")
        text.append("━" * full, self._colour("cyan"))
        text.append("─" * (_BAR - full), "dim")
        done = f"{swap.bytes_done / 2**20:.1f} of {swap.bytes_total / 2**20:.1f} MiB"
        text.append(f"  {swap.moves_done}/{swap.moves_total} moves, {done}")
        return text

    def _colour(self, name: str) -> str:
        return "" if self.app.no_color else name
