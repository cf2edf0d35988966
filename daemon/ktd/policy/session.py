"""One policy at work: from counts to moves, from `ktd policy set` to the next one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import structlog

from ktd.errors import SwapInProgress
from ktd.placement.swap import BatchLimits, SwapState
from ktd.policy.adaptive import Adaptive
from ktd.policy.base import DECISION_TOKENS, Choice, applied
from ktd.policy.dynamic import Dynamic
from ktd.policy.grid import differences, experts_of, mapped_of
from ktd.policy.journal import Entry, Journal
from ktd.policy.options import ADAPTIVE, DYNAMIC, OFF, PolicyOptions
from ktd.policy.pace import Pace
from ktd.policy.settings import AdaptiveSettings
from ktd.policy.step_times import StepTimes
from ktd.policy.watchdog import Setback, Watchdog

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ktd.placement.manager import PlacementManager
    from ktd.placement.model import Experts, ModelShape, Placement
    from ktd.policy.base import Observation, Policy
    from ktd.policy.counted import Counted, Counters
    from ktd.policy.step_times import StepTime

ROLLED_BACK = "POLICY_ROLLED_BACK"
# After a roll-back or a failed swap nothing is moved for so long; doubles each time.
_COOL_SECONDS = 60.0
_MOST_COOL_SECONDS = 3600.0
# A workload that shifts makes steps slower at once, and is seen to have shifted two observations
# later: only then are slower steps laid to the moves before them. That with which they are found
# counts.
_LOOKS_AT_SETBACK = 3
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a session works with.

    Attributes:
        manager: Of the placement; its hold says when an operator goes first.
        counters: What the engine counts.
        on_condition: A reason, and a sentence or None when it is over.
        copy_pairs: Pairs that the CPU computes in the time of one copy, as measured; 0: not known.
        limits: Of a swap.
        monotonic: Seconds.
        usual_copy_cost: See :class:`~ktd.policy.settings.AdaptiveSettings`.
        exchanges_only: Empty slots stay empty.
    """

    manager: PlacementManager
    counters: Counters
    on_condition: Callable[[str, str | None], None]
    copy_pairs: Callable[[], float]
    limits: BatchLimits
    monotonic: Callable[[], float]
    usual_copy_cost: float | None = None
    exchanges_only: bool = False


@dataclass(slots=True)
class Thought:
    """The arithmetic of one turn, which takes tens of milliseconds for a large model.

    Attributes:
        policy: Learns from ``seen``, and decides.
        placement: That it decides on.
        seen: What is new; None: nothing.
        limit: Of the moves; 0: there will be none.
        choices: What it decided.
        experts: The placement with them made.
    """

    policy: Policy
    placement: Placement
    seen: Observation | None
    limit: int
    choices: Sequence[Choice] = ()
    experts: Experts = ()

    @property
    def takes_time(self) -> bool:
        """Whether there is anything to compute."""
        return self.seen is not None or self.limit > 0

    def think(self) -> None:
        """May run in a thread, one at a time: nothing but the policy is touched."""
        if self.seen is not None:
            self.policy.observe(self.seen)
        if self.limit:
            placement = self.placement
            mapped = mapped_of(placement.experts, placement.shape.num_experts)
            self.choices = self.policy.decide(mapped, self.limit)
            self.experts = experts_of(applied(mapped, self.choices))

    def drop(self) -> None:
        """None of the choices is made."""
        if self.choices:
            self.policy.dropped()


class PolicySession:
    """The state of one policy beside an engine, or of none (``off``).

    Args:
        options: What was set.
        around: What it works with.
        journal: Where it writes down its moves.
        before: The session that it replaces.
        known: An adaptive policy that ran before: one that is set again keeps what it has learned.
    """

    def __init__(
        self,
        options: PolicyOptions,
        around: Surroundings,
        journal: Journal,
        before: PolicySession | None = None,
        known: Policy | None = None,
    ) -> None:
        self.options = options
        self.policy: Policy | None = _continued(known, options)
        self._around = around
        self._journal = journal
        self._shape: ModelShape | None = None
        self._last: Counted | None = None
        self._steps = -1
        self._ripe = False
        # Id of the swap that it, or the session before it, has started and that has not ended.
        self._swap: str = before.open_swap if before else ""
        self._call_seconds: float = before.call_seconds if before else 0.0
        self._shifts = 0
        self._step_times = StepTimes()
        self._watchdog = Watchdog()
        self._setback: Setback | None = None
        self._looks = 0  # observations since
        self._pace = Pace(
            options.copy_rate,
            around.limits,
            around.monotonic(),
            rests_until=before.rests_until if before else 0.0,
        )
        self._cool_until = 0.0
        self._cool_seconds = _COOL_SECONDS
        self._cool_why = ""

    @property
    def open_swap(self) -> str:
        """Id of its swap that runs; empty without one."""
        return self._swap

    @property
    def call_seconds(self) -> float:
        """That moving experts had taken of the scheduler when that swap began."""
        return self._call_seconds

    @property
    def rests_until(self) -> float:
        """When it may move again, for what its last swap took of the scheduler."""
        return self._pace.rests_until

    def state(self) -> str:
        """What it does now, in one sentence."""
        if self.options.name == OFF:
            return "No policy runs: experts move only when an operator says so."
        if not self._around.manager.ready:
            return "No engine runs; the policy goes on when one does."
        if complaint := self.complaint():
            return complaint
        if self._setback is not None:
            return (
                "Steps have become slower since its last moves; it looks whether that is the "
                "workload, and takes them back if not."
            )
        return "Running."

    def complaint(self) -> str:
        """Why it moves nothing now, in one sentence; empty if it may."""
        hold = self._around.manager.policy_hold
        if held := hold.complaint():
            again = f" `ktd policy set {self.options.name}` goes on." if hold.paused else ""
            return f"It moves nothing now: {held}{again}"
        left = self._cool_until - self._around.monotonic()
        if left > 0:
            return f"It moves nothing for another {left:.0f} seconds: {self._cool_why}"
        return ""

    def look(self) -> Thought | None:
        """The first part of a turn: what the policy is to think about; None: nothing is new."""
        self.follow_swap()
        self.configure()
        manager = self._around.manager
        if self.options.name == OFF or not manager.ready:
            self._last = None
            return None
        steps, seen = self._around.counters.steps(), None
        if steps != self._steps or self._last is None:
            self._steps = steps
            if (counted := self._around.counters.read()) is not None:
                seen = self._news(counted, manager.placement())
        if self.policy is None or not (seen is not None or self._ripe or self._setback):
            return None
        placement = manager.placement()
        return Thought(self.policy, placement, seen, self._limit(placement, seen))

    def configure(self) -> None:
        """Gives a policy that goes on its new options; never while it thinks."""
        policy = self.policy
        if isinstance(policy, Adaptive) and policy.settings.copy_cost != self.options.copy_cost:
            policy.settings = replace(policy.settings, copy_cost=self.options.copy_cost)

    def act(self, thought: Thought) -> None:
        """The last part: does what the policy thought, if it still can be done."""
        policy = thought.policy
        if thought.seen is not None:
            self._ripe = True
            if isinstance(policy, Adaptive) and policy.shifts != self._shifts:
                self._shifts = policy.shifts
                self._setback = None
                self._watchdog.changed()
        manager = self._around.manager
        if not manager.ready or not self._free():
            thought.drop()
        elif self._setback is not None and self._is_sure():
            thought.drop()
            self._roll_back(manager.placement(), self._setback)
        elif manager.placement().etag != thought.placement.etag:
            thought.drop()
        elif thought.limit:
            # A policy that was held back to its limit goes on without waiting for more tokens.
            self._ripe = len(thought.choices) == thought.limit
            if thought.choices:
                self._move(thought.placement, thought.choices, thought.experts)

    def follow_swap(self) -> None:
        """Notes how its last swap ended."""
        if not self._swap:
            return
        swap = self._around.manager.swaps.get(self._swap)
        if not swap.state.terminal:
            return
        self._journal.ended(swap.id, swap.state.name)
        self._swap = ""
        self._pace.took(self._around.counters.move_call_seconds() - self._call_seconds)
        if swap.state is SwapState.FAILED and self._around.manager.ready:
            self.cool(f"Its last swap failed: {swap.error}")
        elif swap.state is SwapState.CANCELLED:
            self.cool("An operator cancelled its last swap.")

    def cool(self, why: str) -> None:
        """Moves nothing for a while, longer each time."""
        self._cool_until = self._around.monotonic() + self._cool_seconds
        self._cool_seconds = min(_MOST_COOL_SECONDS, 2 * self._cool_seconds)
        self._cool_why = why

    def _busy(self) -> bool:
        """Whether an operator's swap runs."""
        try:
            self._around.manager.swaps.check_idle()
        except SwapInProgress:
            return True
        return False

    def _free(self) -> bool:
        """Whether a swap may begin."""
        return not (self._swap or self.complaint() or self._busy())

    def _news(self, counted: Counted, placement: Placement) -> Observation | None:
        """What the policy has not seen, if that is enough for it."""
        known = self._last
        if self.policy is None or self._shape not in (None, placement.shape):
            self.policy = self._made(placement)
            known = None
        self._shape = placement.shape
        if (mean := self._step_times.update(self._around.monotonic(), counted)) is not None:
            self._judge(mean)
        if known is None or known.engine_id != counted.engine_id:
            # What an engine counted before the policy saw it is of an unknown time.
            self._last = counted
            self._setback = None
            self._watchdog.changed()
            return None
        seen = counted.since(known)
        if seen.tokens < (DECISION_TOKENS if self.options.name == ADAPTIVE else 1):
            return None
        self._last = counted
        self._looks += 1
        return seen

    def _is_sure(self) -> bool:
        return not isinstance(self.policy, Adaptive) or self._looks >= _LOOKS_AT_SETBACK

    def _judge(self, mean: StepTime) -> None:
        if (setback := self._watchdog.update(mean)) is not None:
            self._setback, self._looks = setback, 0

    def _made(self, placement: Placement) -> Policy:
        slots: Sequence[int] = placement.shape.slots
        if self._around.exchanges_only:
            slots = [len(chosen) for chosen in placement.experts]
        if self.options.name == DYNAMIC:
            return Dynamic(slots, self.options.threshold)
        settings = AdaptiveSettings(
            copy_cost=self.options.copy_cost, usual_copy_cost=self._around.usual_copy_cost
        )
        return Adaptive(slots, placement.shape.num_experts, settings)

    def _limit(self, placement: Placement, seen: Observation | None) -> int:
        """How many experts may be moved now; 0: nothing is to be decided."""
        if not (self._ripe or seen is not None) or not self._free():
            return 0
        if isinstance(self.policy, Adaptive):
            self.policy.measured_copy_cost = self._around.copy_pairs()
            if self._around.exchanges_only:
                self.policy.limit([len(chosen) for chosen in placement.experts])
        return max(0, self._pace.moves(placement.shape.expert_bytes, self._around.monotonic()))

    def _roll_back(self, placement: Placement, setback: Setback) -> None:
        self._setback = None
        choices = differences(placement.experts, setback.experts)
        why = (
            f"Steps took {1e3 * setback.after:.2f} ms after the policy's moves and "
            f"{1e3 * setback.before:.2f} ms before them, which chance does not explain "
            f"(± {1e3 * setback.noise:.2f} ms)."
        )
        self.cool(why)
        self._journal.rollbacks += 1
        self._around.on_condition(ROLLED_BACK, f"{why} They were taken back.")
        _log.warning("policy rolled back", why=why, moves=len(choices))
        if choices:
            self._move(placement, choices, setback.experts, why=why)
        self._watchdog.changed()

    def _move(
        self, placement: Placement, choices: Sequence[Choice], experts: Experts, why: str = ""
    ) -> None:
        name, shape = self.options.name, placement.shape
        swap = self._around.manager.apply_policy(name, experts, etag=placement.etag)
        self._swap = swap.id
        # What comes now is another trial.
        self._setback = None
        self._call_seconds = self._around.counters.move_call_seconds()
        self._pace.spent(len(choices), shape.expert_bytes, self._around.monotonic())
        self._watchdog.moved(placement.experts)
        self._journal.add(
            [
                Entry(
                    swap.create_time, name, swap.id, shape.moe_layers[choice.layer], choice, why=why
                )
                for choice in choices
            ]
        )


def _continued(known: Policy | None, options: PolicyOptions) -> Policy | None:
    """What goes on under other options: an adaptive policy keeps what it has learned."""
    return known if isinstance(known, Adaptive) and options.name == ADAPTIVE else None
