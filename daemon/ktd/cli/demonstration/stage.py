"""What the demo shows: headings, streamed texts, maps side by side, and the summary."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from ktd.cli.demonstration.completion import Completion, Difference
from ktd.cli.demonstration.measurement import Work
from ktd.cli.heat import HeatRow, heat_strip, legend
from ktd.cli.quantities import seconds_text, share_text
from ktd.cli.tables import display_width
from ktd.cli.terminal import Terminal

_LABEL = 4
_GAP = 2
_MOST_LAYERS = 12
_PROMPT_TAIL = 160


@dataclass(slots=True)
class Stage:
    """Prints the demo to one terminal."""

    terminal: Terminal
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Since the demo began."""
        return time.monotonic() - self.started

    def heading(self, text: str) -> None:
        """Begins a part."""
        self.terminal.line(f"\n{self.terminal.styled(text, 'bold')}")
        self.terminal.stream.flush()

    def note(self, text: str) -> None:
        """A line of explanation."""
        self.terminal.line(self.terminal.styled(text, "dim"))
        self.terminal.stream.flush()

    def done(self, text: str) -> None:
        """Something that worked."""
        mark = self.terminal.styled("✓" if self.terminal.unicode else "ok", "green")
        self.terminal.line(f"{mark} {text}")
        self.terminal.stream.flush()

    def begin_text(self, domain: str, prompt: str) -> None:
        """Shows the end of a prompt, dimmed; its continuation follows with :meth:`piece`."""
        self.terminal.line(self.terminal.styled(f"[{domain}]", "cyan"))
        tail = prompt[-_PROMPT_TAIL:]
        tail = tail[tail.find("\n") + 1 :] if "\n" in tail[:-1] else tail
        self.terminal.write(self.terminal.styled(tail, "dim"))

    def piece(self, text: str) -> None:
        """Some more of a continuation."""
        self.terminal.write(text)

    def end_text(self, completion: Completion) -> None:
        """Ends a continuation with its speed."""
        self.terminal.line()
        self.note(
            f"{len(completion.tokens)} tokens, first after "
            f"{seconds_text(completion.first_token_seconds)}, "
            f"{completion.tokens_per_second:.0f} tokens/s"
        )

    def maps(self, works: Mapping[str, Work], placed: Mapping[int, Collection[int]]) -> None:
        """One heat map per name, beside each other where the terminal is wide enough."""
        experts = max((len(row) for w in works.values() for row in w.counts.values()), default=0)
        if not experts:
            self.note("nothing was counted")
            return
        wide = self.terminal.width
        beside = _LABEL + len(works) * (experts + _GAP) <= wide
        columns = len(works) if beside else 1
        room = (wide - _LABEL - columns * _GAP) // columns
        # A cell is one or two columns wide: give the strips exactly what they will take.
        room = min(room, 2 * experts if 2 * experts <= room else min(experts, room))
        names = list(works)
        for first in range(0, len(names), columns):
            self._row_of_maps(
                {name: works[name] for name in names[first : first + columns]}, placed, room
            )
        self.terminal.line(" " * _LABEL + legend(self.terminal))

    def _row_of_maps(
        self, works: Mapping[str, Work], placed: Mapping[int, Collection[int]], room: int
    ) -> None:
        gap = " " * _GAP
        titles = gap.join(self.terminal.styled(name.ljust(room)[:room], "cyan") for name in works)
        self.terminal.line(" " * _LABEL + titles.rstrip())
        layers = sorted(next(iter(works.values())).counts)
        for layer in _some(layers):
            strips = []
            for work in works.values():
                row = HeatRow(layer, work.counts[layer], placed.get(layer, ()))
                strip = heat_strip(self.terminal, row, room=room)
                strips.append(strip + " " * (room - display_width(strip)))
            self.terminal.line(f"L{layer}".ljust(_LABEL) + gap.join(strips))
        if len(layers) > _MOST_LAYERS:
            self.note(f"    {_MOST_LAYERS} of {len(layers)} layers, evenly spread")

    def hit_rate(self, name: str, before: Work, after: Work, *, bold: bool = False) -> None:
        """Hit rates of the same work, before and after."""
        arrow = "→" if self.terminal.unicode else "->"
        rates = f"{share_text(before.hit_rate):>7} {arrow} {share_text(after.hit_rate):>7}"
        self.terminal.line(self.terminal.styled(f"{name:<8} {rates}", *(["bold"] if bold else [])))
        self.terminal.stream.flush()

    def comparison(self, name: str, found: Difference | None, tokens: int) -> None:
        """Whether a greedy text is still the same, and if not, how far apart the two tokens are."""
        if found is None:
            self.done(f"{name}: the same {tokens} tokens")
            return
        name = f"{name}: token {found.position + 1} of {tokens}"
        what = f"{name} is {found.after!r} instead of {found.before!r}"
        if found.gap is None:
            how_far = "which was not among the first run's candidates"
        else:
            how_far = f"{found.gap:.3f} less likely (log-probability) in the first run"
        if found.is_tie:
            mark = self.terminal.styled("≈" if self.terminal.unicode else "~", "yellow")
            how_far += ": a tie in bf16"
        else:
            mark = self.terminal.styled("✗" if self.terminal.unicode else "no", "red")
        self.terminal.line(f"{mark} {what}, {how_far}")


def _some(layers: Sequence[int]) -> Sequence[int]:
    """At most ``_MOST_LAYERS`` of the layers, evenly spread."""
    if len(layers) <= _MOST_LAYERS:
        return layers
    step = (len(layers) - 1) / (_MOST_LAYERS - 1)
    return [layers[round(i * step)] for i in range(_MOST_LAYERS)]
