"""Whether a policy may move experts now: an operator's word goes before it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class PolicyHold:
    """The one place where an operator and a policy meet, so that they never fight.

    A plan of an operator holds the policy's moves for as long as the plan is valid; an applied
    change or an undo pauses the policy until it is set again. The manager holds and pauses, whoever
    runs the policy sets it and asks :meth:`complaint` before it moves anything.

    Args:
        clock: Unix seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._held_until = 0.0
        # Name of the policy that was set last; empty for none.
        self.policy = ""
        # Why it is paused, in one sentence; empty while it is not.
        self.paused = ""

    @property
    def held_until(self) -> float:
        """Unix seconds until which moves are held; in the past when they are not."""
        return self._held_until

    def set(self, policy: str) -> None:
        """Runs the policy of that name from now on, or none for an empty one; ends any pause."""
        self.policy = policy
        self.paused = ""
        self._held_until = 0.0

    def hold(self, seconds: float) -> str:
        """Holds the policy's moves for at least ``seconds``: says so, or nothing without one."""
        self._held_until = max(self._held_until, self._clock() + seconds)
        if not self.policy:
            return ""
        if self.paused:
            return f"The policy {self.policy} stays paused: {self.paused}"
        return f"The policy {self.policy} moves nothing for the next {seconds:.0f} seconds."

    def pause(self, why: str) -> str:
        """Stops the policy until it is set again: says so, or nothing without one."""
        self._held_until = 0.0
        if not self.policy:
            return ""
        self.paused = why
        return (
            f"The policy {self.policy} is paused until it is set again "
            f"(ktd policy set {self.policy})."
        )

    def complaint(self) -> str:
        """Why a policy may move nothing now, in one sentence; empty if it may."""
        if self.paused:
            return self.paused
        left = self._held_until - self._clock()
        if left > 0:
            return f"An operator's plan holds the policy's moves for another {left:.0f} seconds."
        return ""
