"""The swaps of a daemon: at most one runs, the last ones are remembered."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

from ktd.errors import SwapInProgress, SwapNotFound
from ktd.placement.runner import SwapContext, SwapRunner

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from ktd.placement.swap import Swap

_KEPT = 50


class SwapTable:
    """Owns the tasks of swaps, so that a swap outlives whoever asked for it.

    Args:
        on_end: Called once for each swap, when its state is terminal.
    """

    def __init__(self, on_end: Callable[[SwapRunner], None]) -> None:
        self._on_end = on_end
        self._runners: list[SwapRunner] = []
        self._task: asyncio.Task[None] | None = None
        # Swaps that ended, by the name of their state, since the daemon started.
        self.outcomes: Counter[str] = Counter()

    def start(self, swap: Swap, context: SwapContext) -> None:
        """Keeps ``swap`` and, if it is not terminal already, carries it out in the background."""
        self.check_idle()
        runner = SwapRunner(swap, context)
        self._keep(runner)
        if swap.state.terminal:
            self.outcomes[swap.state.name] += 1
        else:
            self._task = asyncio.create_task(self._run(runner), name=f"swap-{swap.id}")

    def check_idle(self) -> None:
        """Returns if no swap runs.

        Raises:
            SwapInProgress: one does.
        """
        if (runner := self._running()) is not None:
            raise SwapInProgress(
                f"Swap {runner.swap.id} is running: wait until it has ended, or cancel it.",
                swap=runner.swap.id,
            )

    def target_gone(self, reason: str) -> None:
        """The engine went away: a running swap fails with this sentence."""
        if (runner := self._running()) is not None:
            runner.target_gone(reason)

    async def policy_settled(self) -> None:
        """Returns when no swap of a policy runs."""
        if (runner := self._running()) is not None and runner.swap.by_policy:
            await self.settled()

    async def settled(self) -> None:
        """Returns when no swap runs."""
        if self._task is not None and not self._task.done():
            await asyncio.wait({self._task})

    def all(self) -> tuple[Swap, ...]:
        """The last swaps, newest first."""
        return tuple(runner.swap for runner in reversed(self._runners))

    def get(self, swap_id: str) -> Swap:
        """One swap now.

        Raises:
            SwapNotFound: the id is unknown, or so old that it was forgotten.
        """
        return self._runner(swap_id).swap

    def cancel(self, swap_id: str) -> Swap:
        """Asks a swap to stop and to be taken back; it ends as CANCELLED a little later.

        Raises:
            SwapNotFound: the id is unknown.
            SwapNotCancellable: it is committing, being rolled back, or has ended.
        """
        runner = self._runner(swap_id)
        runner.cancel()
        return runner.swap

    def watch(self, swap_id: str) -> AsyncIterator[Swap]:
        """The swap now, then its changes, to the terminal one.

        Raises:
            SwapNotFound: the id is unknown.
        """
        return self._runner(swap_id).watch()

    def _keep(self, runner: SwapRunner) -> None:
        # Counted apart: a busy policy must not make an operator's swap unknown to who waits for it.
        alike = [kept for kept in self._runners if kept.swap.by_policy == runner.swap.by_policy]
        if len(alike) >= _KEPT:
            self._runners.remove(alike[0])
        self._runners.append(runner)

    def _running(self) -> SwapRunner | None:
        newest = self._runners[-1] if self._runners else None
        return newest if newest and not newest.swap.state.terminal else None

    def _runner(self, swap_id: str) -> SwapRunner:
        for runner in self._runners:
            if runner.swap.id == swap_id:
                return runner
        raise SwapNotFound(
            f"There is no swap {swap_id!r}: the last {_KEPT} of operators and as many of policies "
            "are kept, since the daemon's start."
        )

    async def _run(self, runner: SwapRunner) -> None:
        try:
            await runner.run()
        finally:
            self.outcomes[runner.swap.state.name] += 1
            self._on_end(runner)
