"""Says that what is shown is old: the daemon cannot be reached, or has fallen silent."""

from __future__ import annotations

from textual.widgets import Static

from ktd_tui.messages import Link


class Banner(Static):
    """One line across the screen; hidden while the connection is good."""

    DEFAULT_CSS = """
    Banner { height: 1; padding: 0 1; background: $error; color: $text; display: none; }
    Banner.shown { display: block; }
    Banner.calm { background: $warning; }
    """

    def show_link(self, link: Link, detail: str, retry_in: float) -> None:
        """Shows or hides the banner."""
        self.set_class(link is not Link.CONNECTED, "shown")
        self.set_class(link in (Link.CONNECTING, Link.STALE), "calm")
        text = {
            Link.CONNECTED: "",
            Link.CONNECTING: f"connecting: {detail}",
            Link.STALE: f"stale: {detail}",
            Link.LOST: f"disconnected: {detail}",
        }[link]
        if retry_in:
            text += f" (retrying in {retry_in:.0f} s)"
        self.update(text, layout=False)
