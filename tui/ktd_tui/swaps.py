"""Which states of a swap mean that experts are still moving."""

from __future__ import annotations

from ktd.client import Swap, SwapState

_RUNNING = (SwapState.SWAP_STATE_STAGING, SwapState.SWAP_STATE_COMMITTING)


def is_running(swap: Swap) -> bool:
    """Whether the swap has not ended."""
    return swap.state in _RUNNING
