"""Waiting for a swap and telling how it ended; shared by `apply`, `undo` and `demo`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from ktd.cli.message_json import enum_name
from ktd.cli.moves import moves_json, print_moves
from ktd.cli.quantities import bytes_text, plural, seconds_text
from ktd.cli.terminal import Terminal, err

if TYPE_CHECKING:
    from ktd.client import KtdClient, Swap


async def committed(client: KtdClient, swap: Swap) -> Swap:
    """Waits until ``swap`` is committed, showing progress to a person.

    Raises:
        KtdError: it failed and was rolled back, it was cancelled, or the daemon went away.
    """
    terminal = err()
    try:
        return await client.wait_for_swap(
            swap.name, on_progress=lambda state: terminal.progress(_progress(state))
        )
    except asyncio.CancelledError:
        terminal.progress_done()
        terminal.line("ktd: not waiting any longer; the swap goes on in the daemon")
        raise
    finally:
        terminal.progress_done()


def print_swap(terminal: Terminal, swap: Swap) -> None:
    """What moved, in a line and a table."""
    took = (swap.end_time.ToNanoseconds() - swap.create_time.ToNanoseconds()) / 1e9
    if not swap.moves_total:
        terminal.line(f"Nothing to move: the placement of revision {swap.revision} is that one.")
        return
    mark = terminal.styled("✓" if terminal.unicode else "ok", "green")
    terminal.line(
        f"{mark} {swap.origin}: {plural(swap.moves_total, 'move')}, "
        f"{bytes_text(swap.bytes_done)} copied in {seconds_text(max(0.0, took))}; "
        f"revision {swap.revision}"
    )
    print_moves(terminal, swap.moves)


def swap_json(swap: Swap) -> dict[str, Any]:
    """A swap for programs."""
    return {
        "name": swap.name,
        "state": enum_name(swap, "state"),
        "origin": swap.origin,
        "revision": swap.revision,
        "etag": swap.etag,
        "moves_done": swap.moves_done,
        "moves_total": swap.moves_total,
        "bytes_done": swap.bytes_done,
        "bytes_total": swap.bytes_total,
        "notes": list(swap.notes),
        "moves": moves_json(swap.moves),
    }


def _progress(swap: Swap) -> str:
    return (
        f"{enum_name(swap, 'state').lower()}: {swap.moves_done} of {swap.moves_total} moves, "
        f"{bytes_text(swap.bytes_done)} of {bytes_text(swap.bytes_total)}"
    )
