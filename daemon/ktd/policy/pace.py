"""How fast a policy may move experts: bytes per second, and the scheduler's time."""

from __future__ import annotations

from ktd.placement.swap import BatchLimits

# A swap of one batch makes two calls that the schedulers of all ranks handle between two steps:
# prepare and publish. Of their time each is taken to need this much with all that SGLang does
# around it; a swap whose calls were measured to need more is followed by a longer rest.
_CALLS = 2
_CALL_SECONDS = 0.005
CONTROL_SHARE = 0.02
# Bytes per second. On the CPU copies take the memory's bandwidth from experts that are computed; a
# GPU's link has 50 GB/s, and what it takes from the memory at this rate shows in no token.
DEFAULT_COPY_RATE = 1e9
DEFAULT_COPY_RATE_GPU = 4e9


class Pace:
    """Hands out moves; one swap is one batch, so that an operator never waits for long.

    Args:
        copy_rate: Bytes per second that copies may take, over all ranks.
        limits: Of a batch.
        now: Seconds on any clock, as in the methods.
        rests_until: Nothing may be moved before.
    """

    def __init__(
        self, copy_rate: float, limits: BatchLimits, now: float, rests_until: float = 0.0
    ) -> None:
        self.copy_rate = copy_rate
        self._limits = limits
        self._allowance = 0.0
        self._time = now
        self._began = now
        self._next_swap = max(now, rests_until)

    @property
    def rests_until(self) -> float:
        """When the next swap may begin."""
        return self._next_swap

    def moves(self, expert_bytes: int, now: float) -> int:
        """Experts that may be copied now; 0: later."""
        # What is not used within a second is lost; one expert may always be saved for.
        most = max(self.copy_rate, float(expert_bytes))
        self._allowance = min(most, self._allowance + self.copy_rate * (now - self._time))
        self._time = now
        if now < self._next_swap:
            return 0
        batch = max(1, min(self._limits.moves, self._limits.bytes // max(1, expert_bytes)))
        return min(batch, int(self._allowance // max(1, expert_bytes)))

    def spent(self, moves: int, expert_bytes: int, now: float) -> None:
        """A swap of so many moves has begun."""
        self._began = now
        self._allowance -= moves * expert_bytes
        self._next_swap = now + _CALLS * _CALL_SECONDS / CONTROL_SHARE

    def took(self, seconds: float) -> None:
        """That swap has ended, and its calls took so much of a scheduler's time."""
        self._next_swap = max(self._next_swap, self._began + seconds / CONTROL_SHARE)
