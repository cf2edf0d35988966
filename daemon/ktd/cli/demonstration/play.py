"""The demo's course, from a daemon that serves to the comparison of texts."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ktd.cli.demonstration.completion import Completion, Difference, complete, difference
from ktd.cli.demonstration.measurement import Work, settled_stats, work_between
from ktd.cli.quantities import bytes_text, plural

if TYPE_CHECKING:
    from collections.abc import Callable

    from ktd.cli.demonstration.prompts import Prompt
    from ktd.cli.demonstration.stage import Stage
    from ktd.cli.openai_front import Front
    from ktd.client import KtdClient, Swap


@dataclass(slots=True)
class Findings:
    """What the demo has found out.

    Attributes:
        before: Work per domain under the first placement.
        after: The same prompts under `frequency`.
        differences: Per text, where it parts from the first one; None if it does not.
        swap: How `frequency` was applied.
        pieces_during_swap: Pieces of text that arrived while experts moved.
    """

    before: dict[str, Work] = field(default_factory=dict)
    after: dict[str, Work] = field(default_factory=dict)
    differences: dict[str, Difference | None] = field(default_factory=dict)
    swap: Swap | None = None
    pieces_during_swap: int = 0

    @property
    def changed(self) -> bool:
        """Whether a text differs by more than a tie."""
        return any(found is not None and not found.is_tie for found in self.differences.values())

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "gpu_hit_rate_before": _rates(self.before),
            "gpu_hit_rate_after": _rates(self.after),
            "moves": self.swap.moves_total if self.swap else 0,
            "bytes_copied": self.swap.bytes_done if self.swap else 0,
            "pieces_during_swap": self.pieces_during_swap,
            "text_unchanged": all(found is None for found in self.differences.values()),
            "differences": {
                name: found and found.as_json() for name, found in self.differences.items()
            },
        }


@dataclass(slots=True)
class Play:
    """Plays the demo against one daemon.

    Attributes:
        stage: Where it is shown.
        client: The daemon's API.
        front: Its OpenAI front.
        model: The model's name there.
        tokens: Length of each completion.
        texts: Prompts, one per domain.
    """

    stage: Stage
    client: KtdClient
    front: Front
    model: str
    tokens: int
    texts: tuple[Prompt, ...]
    found: Findings = field(default_factory=Findings)
    _first: dict[str, Completion] = field(default_factory=dict)

    async def run(self) -> Findings:
        """The whole course.

        Raises:
            KtdError: the daemon or its front refused something, or went away.
        """
        self.stage.heading("Three domains, greedy, through the OpenAI API")
        for prompt in self.texts:
            before = await settled_stats(self.client)
            self._first[prompt.domain] = await asyncio.to_thread(self._show, prompt)
            after = await settled_stats(self.client)
            self.found.before[prompt.domain] = work_between(before, after)

        self.stage.heading("Which experts each domain used, and which are in GPU slots: uniform")
        self.stage.maps(self.found.before, await self._placed())

        self.stage.heading("frequency places from what it just saw, while a text is being written")
        await self._swap_under_load()
        together = sum(self.found.before.values(), Work())
        self.stage.maps({"all three": together}, await self._placed())

        self.stage.heading("The same prompts again: GPU hit rate under uniform and frequency")
        again: dict[str, Completion] = {}
        for prompt in self.texts:
            before = await settled_stats(self.client)
            again[prompt.domain] = await asyncio.to_thread(self._complete, prompt, _nothing)
            work = work_between(before, await settled_stats(self.client))
            self.found.after[prompt.domain] = work
            self.stage.hit_rate(prompt.domain, self.found.before[prompt.domain], work)
        all_after = sum(self.found.after.values(), Work())
        self.stage.hit_rate("all", together, all_after, bold=True)

        self.stage.heading("The greedy text, before and after")
        for domain, completion in again.items():
            self.found.differences[domain] = difference(self._first[domain], completion)
        for name, different in self.found.differences.items():
            self.stage.comparison(name, different, self.tokens)
        self.stage.terminal.line()
        return self.found

    def _complete(self, prompt: Prompt, piece: Callable[[str], None]) -> Completion:
        return complete(self.front, self.model, prompt.text, self.tokens, piece)

    def _show(self, prompt: Prompt) -> Completion:
        self.stage.begin_text(prompt.domain, prompt.text)
        completion = self._complete(prompt, self.stage.piece)
        self.stage.end_text(completion)
        return completion

    async def _placed(self) -> dict[int, list[int]]:
        placement = await self.client.placement()
        return {layer.layer: list(layer.gpu_experts) for layer in placement.layers}

    async def _swap_under_load(self) -> None:
        """Applies `frequency` in the middle of a completion, which is compared like the others."""
        prompt, pieces, begun = self.texts[0], 0, asyncio.Event()
        loop = asyncio.get_running_loop()

        def piece(_text: str) -> None:
            nonlocal pieces
            pieces += 1
            loop.call_soon_threadsafe(begun.set)

        async with asyncio.TaskGroup() as group:
            writing = group.create_task(asyncio.to_thread(self._complete, prompt, piece))
            # A writer that fails ends the group, and with it this wait.
            await begun.wait()
            before = pieces
            swap = await self.client.apply_and_wait(strategy="frequency")
            self.found.pieces_during_swap = pieces - before
        self.found.swap = swap
        took = (swap.end_time.ToNanoseconds() - swap.create_time.ToNanoseconds()) / 1e9
        pieces = self.found.pieces_during_swap
        self.stage.done(
            f"{plural(swap.moves_total, 'move')}, {bytes_text(swap.bytes_done)} copied in "
            f"{took:.2f}s; {plural(pieces, 'piece')} of text arrived meanwhile"
        )
        name = f"{prompt.domain}, during the swap"
        self.found.differences[name] = difference(self._first[prompt.domain], writing.result())


def _rates(works: dict[str, Work]) -> dict[str, float]:
    rates = {name: work.hit_rate for name, work in works.items()}
    return {**rates, "all": sum(works.values(), Work()).hit_rate}


def _nothing(_text: str) -> None:
    """Shows nothing."""
