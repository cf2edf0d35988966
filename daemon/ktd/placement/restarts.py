"""Starting the engine again with other slots per layer, which no swap can give it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ktd.errors import InvalidArgument
from ktd.placement.goals import StrategyGoal
from ktd.placement.ledger import DAEMON
from ktd.placement.planner import restarted

if TYPE_CHECKING:
    from ktd.placement.goals import Goal
    from ktd.placement.manager import PlacementManager
    from ktd.placement.model import Experts, ModelShape


@dataclass(frozen=True, slots=True)
class PlannedStart:
    """What the next start of the engine is to have in its slots, and who asked for it.

    Attributes:
        notes: Sentences an operator should read.
    """

    shape: ModelShape
    experts: Experts
    origin: str
    actor: str
    notes: tuple[str, ...] = ()


class Restarts:
    """Holds at most one planned start; the next start takes it, and a failed one is not repeated.

    Args:
        placement: What runs now.
    """

    def __init__(self, placement: PlacementManager) -> None:
        self._placement = placement
        self._planned: PlannedStart | None = None

    def check(
        self, goal: Goal | None, plan_id: str, *, etag: str, actor: str = DAEMON
    ) -> PlannedStart:
        """What a restart would begin with; remembers nothing.

        Args:
            goal: A strategy; None if ``plan_id`` names a plan.
            plan_id: Of a plan that a strategy made; it carries its own etag.
            etag: Of the placement that the caller has seen.
            actor: Who asks, for the history.

        Raises:
            InvalidArgument: the goal is no strategy, so there are no other slots it could want.
            PlanNotFound, EtagRequired, PlacementStale, SwapInProgress, EngineNotReady, KtdError:
                as for a change without a restart.
        """
        placement = self._placement
        placement.swaps.check_idle()
        if goal is None:
            plan = placement.kept_plan(plan_id)
            placement.check_etag(etag or plan.etag)
            placement.check_etag(plan.etag)
            wanted, choice_notes = (plan.shape, plan.experts), ()
            if plan.restart is not None:
                wanted = (plan.restart.shape, plan.restart.experts)
            return PlannedStart(*wanted, plan.origin, actor, choice_notes)
        if not isinstance(goal, StrategyGoal):
            raise InvalidArgument(
                "Only a strategy chooses slots per layer: restart with a strategy, or with a plan "
                "that one made."
            )
        placement.check_etag(etag)
        current = placement.placement()
        shape, choice = restarted(goal.strategy, current.shape, placement.evidence())
        return PlannedStart(shape, choice.experts, goal.strategy, actor, choice.notes)

    def plan(self, start: PlannedStart) -> tuple[str, ...]:
        """Keeps what :meth:`check` returned for the next start; pauses the policy, and says so."""
        self._planned = start
        told = self._placement.policy_hold.pause(
            "An operator has restarted the engine with another placement since the policy was set."
        )
        return (told,) if told else ()

    def take(self) -> PlannedStart | None:
        """The planned start, once."""
        planned, self._planned = self._planned, None
        return planned

    def forget(self) -> None:
        """There will be no restart after all."""
        self._planned = None
