"""Which swap a ``request_id`` started, so that a repeated call does not start another one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_LIFETIME = 600.0
_MOST = 1000


class RequestLog:
    """Ids of requests for ten minutes each; of the newest thousand, so that it does not grow."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._swaps: dict[str, tuple[float, str]] = {}

    def swap_of(self, request_id: str) -> str | None:
        """Id of the swap that the first call with this id started, or None."""
        self._expire()
        known = self._swaps.get(request_id)
        return known[1] if known else None

    def record(self, request_id: str, swap_id: str) -> None:
        """Remembers a call that was accepted; calls without an id are not remembered."""
        if request_id:
            self._swaps[request_id] = (self._clock(), swap_id)
        if len(self._swaps) > _MOST:
            del self._swaps[next(iter(self._swaps))]

    def _expire(self) -> None:
        oldest = self._clock() - _LIFETIME
        # Insertion order is time order.
        while self._swaps:
            request_id = next(iter(self._swaps))
            if self._swaps[request_id][0] > oldest:
                break
            del self._swaps[request_id]
