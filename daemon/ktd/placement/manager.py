"""The placement of one engine: the object behind the API, which outlives the engine itself."""

from __future__ import annotations

import itertools
import secrets
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from ktd.errors import (
    EngineNotReady,
    PlacementDoesNotFit,
    PolicyHeld,
)
from ktd.placement.goals import origin_of, resolve
from ktd.placement.history import ChangeKind
from ktd.placement.ledger import DAEMON, Change, Ledger
from ktd.placement.model import POLICY_ORIGIN, bytes_of, diff
from ktd.placement.planner import Situation, plan_of
from ktd.placement.plans import LIFETIME, Plan, PlanBook
from ktd.placement.policy_hold import PolicyHold
from ktd.placement.requests import RequestLog
from ktd.placement.residency import Residency
from ktd.placement.restarts import Restarts
from ktd.placement.runner import SwapContext
from ktd.placement.strategies.base import Evidence
from ktd.placement.swap import BatchLimits, Swap, SwapState
from ktd.placement.swap_conditions import SwapConditions
from ktd.placement.swaps import SwapTable

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from ktd.placement.goals import Goal
    from ktd.placement.history import History
    from ktd.placement.model import Experts, ModelShape, Placement
    from ktd.placement.runner import SwapRunner
    from ktd.placement.store import PlacementStore, StoredPlacement
    from ktd.placement.strategies.base import Counts
    from ktd.placement.swap import SwapTarget

_NOT_STARTED = "The engine has not started yet; wait until `ktd status` says READY."
# Longer than a call takes, short enough for a call that failed to leave no trace.
_TURN_SECONDS = 2.0
_log = structlog.get_logger(__name__)


class PlacementManager:
    """Reads, plans and changes a placement; all methods belong to one event loop.

    Args:
        store: Where the last committed placement survives the daemon, or None.
        model: Names the model and its shape; what was stored for another one is not restored.
        counts: Activation counts per MoE layer and expert as of now, or None if there are none.
        evidence: What strategies and forecasts may know, instead of the counts alone.
        on_condition: Called with an UPPER_SNAKE reason and a sentence, or None when it is over:
            ``SWAP_ROLLING_BACK``, ``SWAP_ROLLED_BACK``, ``SLOTS_EMPTY``, ``STATE_NOT_SAVED``.
        on_copied: Called with bytes and seconds when a swap has succeeded that copied something.
        limits: How much is unmapped at once.
        clock: Unix seconds.
    """

    def __init__(
        self,
        *,
        store: PlacementStore | None = None,
        model: str = "",
        counts: Callable[[], Counts | None] = lambda: None,
        evidence: Callable[[], Evidence] | None = None,
        on_condition: Callable[[str, str | None], None] = lambda _reason, _message: None,
        on_copied: Callable[[int, float], None] = lambda _bytes, _seconds: None,
        limits: BatchLimits | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._known = evidence or (lambda: Evidence(counts=counts()))
        self._conditions = SwapConditions(on_condition)
        self._on_copied = on_copied
        self._limits = limits or BatchLimits()
        self._clock = clock
        self._ledger = Ledger(
            store, model, clock, lambda text: on_condition("STATE_NOT_SAVED", text)
        )
        self._plans = PlanBook(clock)
        self._requests = RequestLog(clock)
        self._batch_ids = itertools.count(1)
        # Operators hold and pause the policy through it, and whoever runs one asks it.
        self.policy_hold = PolicyHold(clock)
        self._target: SwapTarget | None = None
        self._residency: Residency | None = None
        self._absence = _NOT_STARTED
        # What the engine is to be started again with.
        self.restarts = Restarts(self)
        # The swaps of this daemon: to read, to watch, to cancel.
        self.swaps = SwapTable(self._ended)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.detach("The daemon is stopping.")
        await self.swaps.settled()
        await self._ledger.close()

    # The engine's side.

    @property
    def restorable(self) -> StoredPlacement | None:
        """What an earlier daemon had committed for the same model, slots included."""
        return self._ledger.restorable

    @property
    def ready(self) -> bool:
        """Whether there is an engine whose placement can be changed."""
        return self._target is not None

    async def attach(
        self,
        target: SwapTarget,
        shape: ModelShape,
        experts: Experts,
        origin: str = "start",
        actor: str = DAEMON,
    ) -> Placement:
        """An engine became ready with ``experts`` in its slots.

        Where that is what was current or stored, revision and history go on; otherwise this is a
        new placement with that ``origin``, which ``actor`` wanted.
        """
        if not shape.fits(experts):
            raise ValueError("the engine's placement does not fit its slots")
        self.detach("The engine was started again.")
        await self.swaps.settled()
        self._ledger.started(shape, experts, origin, actor)
        self._target = target
        self._residency = Residency(shape, experts)
        self._conditions.attached()
        await self._ledger.save()
        return self.placement()

    def detach(self, reason: str) -> None:
        """The engine is gone, or going; a running swap fails with ``reason``, one sentence."""
        self._target = None
        self._absence = reason
        self.swaps.target_gone(reason)

    # The operator's side.

    @property
    def revision(self) -> int:
        """Revision of the committed placement; 0 before the first."""
        return self._ledger.placement.revision if self._ledger.placement else 0

    @property
    def history(self) -> History:
        """Applied placements, newest first."""
        return self._ledger.history

    def placement(self) -> Placement:
        """The last committed placement, also while no engine runs.

        Raises:
            EngineNotReady: none has been committed since the daemon started.
        """
        if self._ledger.placement is None:
            raise EngineNotReady(self._absence)
        return self._ledger.placement

    def plan(self, goal: Goal) -> Plan:
        """What ``goal`` would move; kept for 60 seconds under its id. Changes nothing.

        Raises:
            EngineNotReady: no placement is known yet.
            KtdError: ``goal`` cannot be met, see :func:`~ktd.placement.goals.resolve`.
        """
        situation = Situation(self.placement(), self._mapped(), self.evidence(), self._clock())
        plan = plan_of(goal, situation)
        if held := self.policy_hold.hold(LIFETIME):
            plan = replace(plan, notes=(*plan.notes, held))
        self._plans.add(plan)
        return plan

    def kept_plan(self, plan_id: str) -> Plan:
        """A plan that was made less than 60 seconds ago and not applied.

        Raises:
            PlanNotFound: there is none of that id.
        """
        return self._plans.get(plan_id)

    def apply_plan(
        self,
        plan_id: str,
        *,
        etag: str = "",
        validate_only: bool = False,
        request_id: str = "",
        actor: str = DAEMON,
    ) -> Swap:
        """Starts the swap that a plan describes, and forgets the plan.

        A plan carries its own etag; one that is given too must agree with the placement as well.

        Raises:
            PlanNotFound: the plan is unknown, used or expired.
            PlacementStale: the placement has changed since the plan was made.
            EngineNotReady, SwapInProgress: see :meth:`apply`.
        """
        if (repeated := self._repeated(request_id)) is not None:
            return repeated
        plan = self.kept_plan(plan_id)
        self.check_etag(etag or plan.etag)
        self.check_etag(plan.etag)
        change = Change(plan.experts, plan.origin, actor)
        swap = self._change(change, validate_only=validate_only, request_id=request_id)
        if not validate_only:
            self._plans.forget(plan_id)
        return swap

    def apply(
        self,
        goal: Goal,
        *,
        etag: str,
        validate_only: bool = False,
        request_id: str = "",
        actor: str = DAEMON,
    ) -> Swap:
        """Starts a swap and returns at once; a refused one changes nothing.

        Args:
            goal: What to reach.
            etag: Of the placement that the caller has seen.
            validate_only: Check everything, start nothing; the result has no id.
            request_id: A repeated id returns the first call's swap: see :class:`RequestLog`.
            actor: Who asks, for the history.

        Raises:
            EtagRequired: ``etag`` is empty.
            PlacementStale: it is not that of the current placement.
            EngineNotReady: no engine runs.
            SwapInProgress: another swap runs.
            KtdError: ``goal`` cannot be met, see :func:`~ktd.placement.goals.resolve`.
        """
        if (repeated := self._repeated(request_id)) is not None:
            return repeated
        current = self.placement()
        choice = resolve(goal, current.shape, current.experts, self.evidence)
        self.check_etag(etag)
        change = Change(choice.experts, origin_of(goal), actor)
        return self._change(change, validate_only=validate_only, request_id=request_id)

    def undo(self, *, etag: str, request_id: str = "", actor: str = DAEMON) -> Swap:
        """Starts a swap back to what the newest operator's change replaced.

        Raises:
            NothingToUndo: the history has none.
            EtagRequired, PlacementStale, EngineNotReady, SwapInProgress: see :meth:`apply`.
        """
        if (repeated := self._repeated(request_id)) is not None:
            return repeated
        self.check_etag(etag)
        point = self.history.undo_point()
        change = Change(point.experts, "undo", actor, ChangeKind.UNDO, point.note)
        return self._change(change, validate_only=False, request_id=request_id)

    async def operators_turn(self) -> None:
        """Returns when no swap of a policy runs, and none starts while the operator's call runs."""
        self.policy_hold.hold(_TURN_SECONDS)
        await self.swaps.policy_settled()

    # The policy's side.

    def apply_policy(self, policy: str, experts: Experts, *, etag: str) -> Swap:
        """Starts a swap that the policy of that name wants, and returns at once.

        Undo does not walk it back; the history shows what a policy does in a row as one entry, and
        the store has it some seconds later. Operators wait for it to end, so it should be small.

        Args:
            policy: Becomes the origin ``policy:<name>``.
            experts: The whole target, per MoE layer, ascending.
            etag: Of the placement that the policy decided on.

        Raises:
            PolicyHeld: an operator plans, or has changed the placement since the policy was set.
            PlacementDoesNotFit: ``experts`` is no placement of this engine.
            EtagRequired, PlacementStale, EngineNotReady, SwapInProgress: see :meth:`apply`.
        """
        if complaint := self.policy_hold.complaint():
            raise PolicyHeld(complaint)
        self.check_etag(etag)
        if not self.placement().shape.fits(experts):
            raise PlacementDoesNotFit(f"What the policy {policy} wants does not fit the slots.")
        change = Change(experts, POLICY_ORIGIN + policy, DAEMON, ChangeKind.POLICY)
        return self._change(change, validate_only=False, request_id="")

    def _repeated(self, request_id: str) -> Swap | None:
        known = self._requests.swap_of(request_id)
        return self.swaps.get(known) if known else None

    def check_etag(self, etag: str) -> None:
        """Returns if ``etag`` is that of the current placement.

        Raises:
            EtagRequired, PlacementStale: it is empty, or another one.
        """
        self.placement()
        self._ledger.check_etag(etag)

    def evidence(self) -> Evidence:
        """What strategies may know as of now."""
        return replace(self._known(), expert_bytes=self.placement().shape.expert_bytes)

    def _mapped(self) -> Experts:
        return self._residency.experts if self._residency else self.placement().experts

    def _change(self, change: Change, *, validate_only: bool, request_id: str) -> Swap:
        target, residency = self._target, self._residency
        if target is None or residency is None:
            raise EngineNotReady(self._absence)
        self.swaps.check_idle()
        current = self.placement()
        moves = diff(current.shape, residency.experts, change.experts)
        swap = Swap(
            id="" if validate_only else secrets.token_hex(6),
            state=SwapState.STAGING,
            origin=change.origin,
            moves=moves,
            create_time=self._clock(),
            bytes_total=bytes_of(current.shape, moves),
        )
        if validate_only:
            return swap
        if not moves and change.kind is not ChangeKind.UNDO and change.experts == current.experts:
            swap = replace(
                swap,
                state=SwapState.SUCCEEDED,
                end_time=swap.create_time,
                revision=current.revision,
                etag=current.etag,
            )
        context = SwapContext(
            target=target,
            shape=current.shape,
            residency=residency,
            limits=self._limits,
            batch_ids=self._batch_ids,
            commit=lambda done: self._commit(done, change),
            on_take_back=self._conditions.taking_back,
            clock=self._clock,
        )
        if change.kind is not ChangeKind.POLICY:
            what = "undid a change" if change.kind is ChangeKind.UNDO else "changed the placement"
            told = self.policy_hold.pause(f"An operator {what} since the policy was set.")
            swap = replace(swap, notes=tuple(note for note in (change.note, told) if note))
        self.swaps.start(swap, context)
        self._requests.record(request_id, swap.id)
        _log.info(
            "placement swap",
            swap=swap.id,
            origin=swap.origin,
            moves=len(moves),
            actor=change.actor,
        )
        return swap

    async def _commit(self, swap: Swap, change: Change) -> Placement:
        placement = self._ledger.committed(change, swap.moves)
        if change.kind is ChangeKind.POLICY:
            self._ledger.save_soon()
        else:
            await self._ledger.save()
        return placement

    def _ended(self, runner: SwapRunner) -> None:
        swap = runner.swap
        _log.info(
            "placement swap ended",
            swap=swap.id,
            state=swap.state.name,
            revision=swap.revision,
            error=str(swap.error) if swap.error else None,
        )
        if swap.state is SwapState.SUCCEEDED and swap.bytes_total:
            self._on_copied(swap.bytes_total, (swap.end_time or 0.0) - swap.create_time)
        missing = None
        if self.ready:
            current = self.placement()
            missing = len(diff(current.shape, current.experts, self._mapped()))
        self._conditions.ended(runner, missing)
