"""What an operator sets about policies."""

from __future__ import annotations

from dataclasses import dataclass

from ktd.errors import InvalidArgument
from ktd.policy.pace import DEFAULT_COPY_RATE

OFF, DYNAMIC, ADAPTIVE = "off", "dynamic", "adaptive"
POLICIES = (OFF, DYNAMIC, ADAPTIVE)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyOptions:
    """Attributes of a policy that runs; a bad one is refused with one sentence.

    Attributes:
        name: One of ``POLICIES``.
        copy_cost: See :class:`~ktd.policy.settings.AdaptiveSettings`.
        copy_rate: Bytes per second that its copies may take.
        threshold: Tokens of a prefill that decides, for ``dynamic``; None: never.
    """

    name: str = OFF
    copy_cost: float | None = None
    copy_rate: float = DEFAULT_COPY_RATE
    threshold: int | None = None

    def __post_init__(self) -> None:
        """Checks all of it."""
        if self.name not in POLICIES:
            raise InvalidArgument(
                f"There is no policy {self.name!r}: choose one of {', '.join(POLICIES)}."
            )
        if self.copy_cost is not None and not 0 <= self.copy_cost < float("inf"):
            raise InvalidArgument(
                f"The copy cost is {self.copy_cost:g} pairs; it must be 0 or more."
            )
        if not 0 < self.copy_rate < float("inf"):
            raise InvalidArgument(
                f"The copy rate is {self.copy_rate:g} bytes per second; it must be above 0."
            )
        if self.threshold is not None and self.threshold < 1:
            raise InvalidArgument(
                f"The threshold is {self.threshold} tokens; it must be 1 or more."
            )
