"""One frame's data for programs: what `ktd top --once --json` prints. Needs no Textual."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from ktd.client import EnginePhase, KtdError, SwapState
from ktd_tui.activity import Activity, ActivityBoard

if TYPE_CHECKING:
    from ktd.client import EngineStatus, KtdClient, Placement, Swap

_WINDOW = 0.5  # seconds over which the speed is measured
_PATIENCE = 3.0


async def read_frame(client: KtdClient) -> dict[str, Any]:
    """Everything that the screen would show now; null for what a starting engine does not have.

    Raises:
        KtdError: the daemon cannot be reached.
    """
    status = await client.status()
    placement: Placement | None = None
    swaps: list[Swap] = []
    missing = None
    try:
        placement = await client.placement()
        swaps = list(await client.swaps())
    except KtdError as error:
        missing = str(error)
    activity = await _activity(client) if placement is not None else None
    return {
        **_engine(status),
        "tokens_per_second": activity.tokens_per_second if activity else None,
        "gpu_hit_rate": activity.total_hit_rate if activity else None,
        "window_gpu_hit_rate": activity.window_hit_rate if activity else None,
        "revision": placement.revision if placement else None,
        "etag": placement.etag if placement else None,
        "origin": placement.origin if placement else None,
        "layers": _layers(placement, activity) if placement else [],
        "swap": _swap(swaps[0]) if swaps else None,
        "missing": missing,
    }


async def _activity(client: KtdClient) -> Activity | None:
    """What two messages of the statistics stream say: all counts, then a window's speed."""
    board, activity, seen = ActivityBoard(), None, 0
    try:
        async with asyncio.timeout(_PATIENCE):
            async for snapshot in client.watch_stats(_WINDOW):
                activity = board.update(snapshot)
                seen += 1
                if seen > 1:
                    break
    except TimeoutError:
        return activity
    return activity


def _engine(status: EngineStatus) -> dict[str, Any]:
    progress = status.progress
    return {
        "phase": EnginePhase.Name(status.phase).removeprefix("ENGINE_PHASE_"),
        "message": status.message,
        "progress": progress.bytes_done / progress.bytes_total if progress.bytes_total else None,
        "model": status.model.served_name or status.model.path or None,
        "requests_in_flight": status.requests_in_flight,
        "conditions": [
            {"reason": condition.reason, "message": condition.message}
            for condition in status.conditions
        ],
    }


def _layers(placement: Placement, activity: Activity | None) -> list[dict[str, Any]]:
    counts = {row.layer: row.counts for row in activity.layers} if activity else {}
    return [
        {
            "layer": layer.layer,
            "num_experts": layer.num_experts,
            "slots": layer.slots,
            "gpu_experts": list(layer.gpu_experts),
            "counts": list(counts.get(layer.layer, (0,) * layer.num_experts)),
        }
        for layer in placement.layers
    ]


def _swap(swap: Swap) -> dict[str, Any]:
    return {
        "name": swap.name,
        "state": SwapState.Name(swap.state).removeprefix("SWAP_STATE_"),
        "origin": swap.origin,
        "moves_done": swap.moves_done,
        "moves_total": swap.moves_total,
    }
