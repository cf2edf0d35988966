"""Notices that the pool will not answer, on a host without a GPU.

There the scheduler's thread waits in the call itself, so a thread of the pool that never comes back
would hold it for ever. Beside a GPU the waiting is the device's, which gives up by itself.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable

from ktd.experts.pool import ExpertPool

# No part of the work between two beats of the pool's heart takes a tenth of that.
_LOOKS = 20
_LOOK_SECONDS = 1.0


class PoolWatch:
    """A thread that looks whether a call of :meth:`ExpertPool.forward` goes on.

    It counts its own looks instead of reading a clock: a process that was stopped for a while, as
    by a debugger, is not taken for one that hangs.

    Args:
        pool: Lives as long as the process.
        give_up: Called once with what is wrong, a clause, from this thread.
        looks: After so many without a beat.
        look_s: Seconds between two.
    """

    def __init__(
        self,
        pool: ExpertPool,
        give_up: Callable[[str], object],
        *,
        looks: int = _LOOKS,
        look_s: float = _LOOK_SECONDS,
    ) -> None:
        self._pool = pool
        self._give_up = give_up
        self._looks = looks
        self._look_s = look_s
        self._heart = ctypes.c_uint64.from_address(pool.native.heartbeat_address())
        self._never = threading.Event()
        threading.Thread(target=self._run, name="ktd-pool-watch", daemon=True).start()

    def _run(self) -> None:
        native, now, silent = self._pool.native, (-1, -1), 0
        while silent < self._looks:
            self._never.wait(self._look_s)
            before, now = now, (self._heart.value, native.calls)
            silent = silent + 1 if self._pool.computing and now == before else 0
        seconds = self._looks * self._look_s
        self._give_up(f"a thread of the CPU pool has not come back for {seconds:g} s")
