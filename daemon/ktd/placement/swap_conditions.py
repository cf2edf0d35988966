"""What the daemon's status says of swaps that did not go as they should."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ktd.placement.swap import SwapState

if TYPE_CHECKING:
    from collections.abc import Callable

    from ktd.placement.runner import SwapRunner
    from ktd.placement.swap import Swap


class SwapConditions:
    """Reports ``SWAP_ROLLING_BACK``, ``SWAP_ROLLED_BACK`` and ``SLOTS_EMPTY``, and their end.

    Args:
        report: Called with a reason and a sentence, or None when it is over.
    """

    def __init__(self, report: Callable[[str, str | None], None]) -> None:
        self._report = report

    def attached(self) -> None:
        """An engine with full slots runs."""
        self._report("SLOTS_EMPTY", None)

    def taking_back(self, swap: Swap) -> None:
        """A roll-back begins."""
        why = f"failed: {swap.error}" if swap.error else "was cancelled"
        self._report(
            "SWAP_ROLLING_BACK",
            f"Swap {swap.id} {why}; the experts it moved are being copied back, the CPU computes "
            "them meanwhile.",
        )

    def ended(self, runner: SwapRunner, missing: int | None) -> None:
        """A swap is terminal; ``missing`` experts of the placement are in no slot.

        None where there is no engine any more, of which nothing can be said.
        """
        swap = runner.swap
        self._report("SWAP_ROLLING_BACK", None)
        if swap.state is SwapState.SUCCEEDED:
            self._report("SWAP_ROLLED_BACK", None)
            self._report("SLOTS_EMPTY", None)
            return
        if missing is None:
            return
        if swap.error is not None:
            self._report("SWAP_ROLLED_BACK", f"Swap {swap.id} failed: {swap.error}")
        if missing or runner.take_back_error:
            self._report(
                "SLOTS_EMPTY",
                f"Swap {swap.id} could not be rolled back ({runner.take_back_error}): {missing} "
                "experts of the placement are in no slot and the CPU computes them; apply a "
                "placement again, or restart the engine.",
            )
