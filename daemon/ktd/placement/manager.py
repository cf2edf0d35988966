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
    EtagRequired,
    PlacementDoesNotFit,
    PlacementStale,
    PolicyHeld,
)
from ktd.placement.goals import origin_of, resolve
from ktd.placement.history import ChangeKind
from ktd.placement.ledger import DAEMON, Change, Ledger
from ktd.placement.model import POLICY_ORIGIN, bytes_of, diff
from ktd.placement.plans import LIFETIME, Plan, PlanBook, hit_rate
from ktd.placement.policy_hold import PolicyHold
from ktd.placement.requests import RequestLog
from ktd.placement.residency import Residency
from ktd.placement.runner import SwapContext
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
        on_condition: Called with an UPPER_SNAKE reason and a sentence, or None when it is over:
            ``SWAP_ROLLING_BACK``, ``SWAP_ROLLED_BACK``, ``SLOTS_EMPTY``, ``STATE_NOT_SAVED``.
        limits: How much is unmapped at once.
        clock: Unix seconds.
    """

    def __init__(
        self,
        *,
        store: PlacementStore | None = None,
        model: str = "",
        counts: Callable[[], Counts | None] = lambda: None,
        on_condition: Callable[[str, str | None], None] = lambda _reason, _message: None,
        limits: BatchLimits | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._counts = counts
        self._conditions = SwapConditions(on_condition)
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
        self, target: SwapTarget, shape: ModelShape, experts: Experts, origin: str = "start"
    ) -> Placement:
        """An engine became ready with ``experts`` in its slots.

        Where that is what was current or stored, revision and history go on; otherwise this is a
        new placement with that ``origin``.
        """
        if not shape.fits(experts):
            raise ValueError("the engine's placement does not fit its slots")
        self.detach("The engine was started again.")
        await self.swaps.settled()
        self._ledger.started(shape, experts, origin)
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
        current = self.placement()
        counts = self._counts()
        choice = resolve(goal, current.shape, current.experts, counts)
        moves = diff(current.shape, self._mapped(), choice.experts)
        held = self.policy_hold.hold(LIFETIME)
        plan = Plan(
            id=secrets.token_hex(6),
            etag=current.etag,
            expire_time=self._clock() + LIFETIME,
            shape=current.shape,
            experts=choice.experts,
            origin=origin_of(goal),
            moves=moves,
            bytes=bytes_of(current.shape, moves),
            hit_rate_before=hit_rate(self._mapped(), counts),
            hit_rate_after=hit_rate(choice.experts, counts),
            notes=(*choice.notes, held) if held else choice.notes,
        )
        self._plans.add(plan)
        return plan

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
        plan = self._plans.get(plan_id)
        self._check_etag(etag or plan.etag)
        self._check_etag(plan.etag)
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
            request_id: A repeated id returns the first call's swap, for ten minutes.
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
        choice = resolve(goal, current.shape, current.experts, self._counts())
        self._check_etag(etag)
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
        self._check_etag(etag)
        change = Change(self.history.undo_point().experts, "undo", actor, ChangeKind.UNDO)
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
        self._check_etag(etag)
        if not self.placement().shape.fits(experts):
            raise PlacementDoesNotFit(f"What the policy {policy} wants does not fit the slots.")
        change = Change(experts, POLICY_ORIGIN + policy, DAEMON, ChangeKind.POLICY)
        return self._change(change, validate_only=False, request_id="")

    def _repeated(self, request_id: str) -> Swap | None:
        known = self._requests.swap_of(request_id)
        return self.swaps.get(known) if known else None

    def _check_etag(self, etag: str) -> None:
        current = self.placement()
        if not etag:
            raise EtagRequired(
                "The request has no etag: read the placement, then send the etag it came with."
            )
        if etag != current.etag:
            raise PlacementStale(
                f"The placement has changed since etag {etag} was read: it is at revision "
                f"{current.revision} now; read it again, then retry.",
                etag=current.etag,
            )

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
            swap = replace(swap, notes=self._paused_by(change))
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

    def _paused_by(self, change: Change) -> tuple[str, ...]:
        what = "undid a change" if change.kind is ChangeKind.UNDO else "changed the placement"
        told = self.policy_hold.pause(f"An operator {what} since the policy was set.")
        return (told,) if told else ()

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
        missing = None
        if self.ready:
            current = self.placement()
            missing = len(diff(current.shape, current.experts, self._mapped()))
        self._conditions.ended(runner, missing)
