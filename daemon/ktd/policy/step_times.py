"""How long decode steps take, from counters that are read now and then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ktd.policy.counted import Counted

_LEAST_STEPS = 8
_LEAST_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class StepTime:
    """A mean over some steps: seconds per step, and tokens per step."""

    seconds: float
    batch: float


class StepTimes:
    """Times of decode steps while nothing but decode runs.

    A stretch between two readings counts if decode and nothing else advanced in it, and in the ones
    before and after it as well: so idle time at the ends of a request is left out.
    """

    def __init__(self) -> None:
        self._last: tuple[float, Counted] | None = None
        self._pending: tuple[float, int, int] | None = None
        self._seconds = 0.0
        self._steps = 0
        self._tokens = 0

    def update(self, now: float, counted: Counted) -> StepTime | None:
        """Takes a reading in; a mean as soon as there are enough steps for one."""
        last, self._last = self._last, (now, counted)
        if last is None or last[1].engine_id != counted.engine_id:
            self._restart()
            return None
        seconds = now - last[0]
        steps = counted.decode_steps - last[1].decode_steps
        tokens = counted.decode_tokens - last[1].decode_tokens
        if steps <= 0 or seconds <= 0 or counted.prefill_steps != last[1].prefill_steps:
            self._restart()
            return None
        if self._pending is None:  # the stretch before was of another kind
            self._pending = (0.0, 0, 0)
            return None
        pending, self._pending = self._pending, (seconds, steps, tokens)
        self._seconds += pending[0]
        self._steps += pending[1]
        self._tokens += pending[2]
        if self._steps < _LEAST_STEPS or self._seconds < _LEAST_SECONDS:
            return None
        found = StepTime(self._seconds / self._steps, self._tokens / self._steps)
        self._seconds, self._steps, self._tokens = 0.0, 0, 0
        return found

    def _restart(self) -> None:
        self._pending = None
        self._seconds, self._steps, self._tokens = 0.0, 0, 0
