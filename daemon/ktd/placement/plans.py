"""What a target would move, and the short memory of such answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ktd.errors import PlanNotFound

if TYPE_CHECKING:
    from collections.abc import Callable

    from ktd.placement.forecast import Forecast
    from ktd.placement.model import Experts, ModelShape, Move

LIFETIME = 60.0
# A plan of a large model holds some hundred thousand numbers.
_MOST = 64


@dataclass(frozen=True, slots=True)
class RestartOffer:
    """What an engine with as many slots, but other counts per layer, would start with."""

    shape: ModelShape
    experts: Experts
    forecast: Forecast


@dataclass(frozen=True, slots=True)
class Plan:
    """A target, worked out against the placement with ``etag``.

    Attributes:
        expire_time: Unix seconds.
        bytes: What the moves copy, over all ranks.
        copy_seconds: How long that takes at the measured rate of copying.
        before: How the placement of now does on the recent statistics; ``after``: under the plan.
        restart: What a restart could give that the slots of now cannot, or None.
        notes: Sentences an operator should read.
    """

    id: str
    etag: str
    expire_time: float
    shape: ModelShape
    experts: Experts
    origin: str
    moves: tuple[Move, ...]
    bytes: int
    copy_seconds: float
    before: Forecast
    after: Forecast
    restart: RestartOffer | None
    notes: tuple[str, ...]


class PlanBook:
    """Plans by id, each for 60 seconds; one that was applied is forgotten at once."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._plans: dict[str, Plan] = {}

    def add(self, plan: Plan) -> None:
        """Keeps ``plan``; the oldest go when there are too many."""
        self._expire()
        self._plans[plan.id] = plan
        while len(self._plans) > _MOST:
            del self._plans[next(iter(self._plans))]

    def get(self, plan_id: str) -> Plan:
        """The plan of that id.

        Raises:
            PlanNotFound: it never existed, was applied, or is older than 60 seconds.
        """
        self._expire()
        plan = self._plans.get(plan_id)
        if plan is None:
            raise PlanNotFound(
                f"There is no plan {plan_id!r}: plans are kept for {LIFETIME:.0f} seconds and "
                "until they are applied; plan again."
            )
        return plan

    def forget(self, plan_id: str) -> None:
        """Drops a plan that was used."""
        self._plans.pop(plan_id, None)

    def _expire(self) -> None:
        now = self._clock()
        for plan_id in [key for key, plan in self._plans.items() if plan.expire_time <= now]:
            del self._plans[plan_id]
