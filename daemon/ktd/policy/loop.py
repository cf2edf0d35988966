"""Runs policies beside an engine: the object behind ``ktd policy``."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from ktd.errors import KtdError
from ktd.placement.swap import BatchLimits
from ktd.policy.adaptive import Adaptive
from ktd.policy.grid import mapped_of
from ktd.policy.journal import Entry, Journal
from ktd.policy.options import OFF, PolicyOptions
from ktd.policy.session import ROLLED_BACK, PolicySession, Surroundings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ktd.placement.manager import PlacementManager
    from ktd.policy.base import Choice, Policy
    from ktd.policy.counted import Counters

TICK_SECONDS = 0.1
NOT_FIRING = "POLICY_CANNOT_FIRE"
# Of one core's time; on a busy host 48 layers of 512 experts take 25 ms a turn.
_LOOP_SHARE = 0.1
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Explanation:
    """What ``ktd policy explain`` shows.

    Attributes:
        options: What was set.
        state: What it does now, one sentence.
        facts: What its decisions rest on.
        moves: The last ones, newest first.
        considered: The best candidates now, each with its model layer.
        moved: Moves since the daemon's start, ``rollbacks`` how often they were taken back.
    """

    options: PolicyOptions
    state: str
    facts: Mapping[str, float]
    moves: Sequence[Entry]
    considered: Sequence[tuple[int, Choice]]
    moved: int
    rollbacks: int


class PolicyLoop:
    """The one owner of the policy that runs; all methods belong to one event loop.

    Args:
        manager: Of the placement.
        counters: What the engine counts.
        options: What to begin with.
        on_condition: As the manager's: a reason, and a sentence or None.
        copy_pairs: Pairs that the CPU computes in the time of one copy, as measured; 0: not known.
        advice: What a user should know about options, one sentence, or nothing.
        limits: Of a swap.
        monotonic: Seconds.
        usual_copy_cost: See :class:`~ktd.policy.settings.AdaptiveSettings`.
        exchanges_only: Policies leave empty slots empty, as a bench wants that has more of them
            than it measures with.
    """

    def __init__(
        self,
        manager: PlacementManager,
        counters: Counters,
        options: PolicyOptions | None = None,
        *,
        on_condition: Callable[[str, str | None], None] = lambda _reason, _message: None,
        copy_pairs: Callable[[], float] = lambda: 0.0,
        advice: Callable[[PolicyOptions], str] = lambda _options: "",
        limits: BatchLimits | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        usual_copy_cost: float | None = None,
        exchanges_only: bool = False,
    ) -> None:
        self._around = Surroundings(
            manager,
            counters,
            on_condition,
            copy_pairs,
            limits or BatchLimits(),
            monotonic,
            usual_copy_cost=usual_copy_cost,
            exchanges_only=exchanges_only,
        )
        # Held while a thread uses the policy.
        self._thinking = asyncio.Lock()
        self.journal = Journal()
        self._advice = advice
        self._learned: Policy | None = None  # by the adaptive policy that ran last
        self._session = self._begun(options or PolicyOptions(), None)

    @property
    def options(self) -> PolicyOptions:
        """What runs."""
        return self._session.options

    def set(self, options: PolicyOptions) -> None:
        """Runs another policy, or the same with other options; ends a pause and any cooling off."""
        self._session = self._begun(options, self._session)
        _log.info("policy set", policy=options.name)

    def state(self) -> str:
        """What it does now, in one sentence."""
        return self._session.state()

    def notes(self) -> tuple[str, ...]:
        """What a user should know about it: for ``dynamic``, that it can never fire."""
        note = self._advice(self.options)
        return (note,) if note else ()

    async def explain(self, moves: int = 20, considered: int = 20) -> Explanation:
        """Its last moves, and the best candidates with what speaks against each."""
        async with self._thinking:
            return self._explained(moves, considered)

    def _explained(self, moves: int, considered: int) -> Explanation:
        session, manager = self._session, self._around.manager
        session.follow_swap()
        session.configure()
        found: list[tuple[int, Choice]] = []
        if session.policy is not None and manager.ready:
            placement = manager.placement()
            mapped = mapped_of(placement.experts, placement.shape.num_experts)
            blocked = session.complaint()
            found = [
                (
                    placement.shape.moe_layers[choice.layer],
                    choice if choice.reason else choice._replace(reason=blocked),
                )
                for choice in session.policy.considered(mapped, considered)
            ]
        return Explanation(
            options=session.options,
            state=session.state(),
            facts=session.policy.facts() if session.policy is not None else {},
            moves=self.journal.last(moves),
            considered=found,
            moved=self.journal.moves,
            rollbacks=self.journal.rollbacks,
        )

    async def run(self) -> None:
        """Decides until it is cancelled; what goes wrong in one turn is logged, and said."""
        while True:
            before = time.perf_counter()
            await self.turn()
            took = time.perf_counter() - before
            await asyncio.sleep(max(TICK_SECONDS, took / _LOOP_SHARE))

    async def turn(self) -> None:
        """One turn; its arithmetic is done beside the event loop, through which tokens pass."""
        session = self._session
        with _guarded(session):
            if (thought := session.look()) is not None:
                if thought.takes_time:
                    async with self._thinking:
                        await asyncio.to_thread(thought.think)
                if session is self._session:
                    session.act(thought)
                else:
                    # Another one was set meanwhile; it begins with what this one has learned.
                    thought.drop()

    def _begun(self, options: PolicyOptions, before: PolicySession | None) -> PolicySession:
        if before is not None:
            before.follow_swap()
        self._around.manager.policy_hold.set("" if options.name == OFF else options.name)
        self._around.on_condition(ROLLED_BACK, None)
        if note := self._advice(options):
            _log.warning("policy", note=note)
        self._around.on_condition(NOT_FIRING, note or None)
        if before is not None and isinstance(before.policy, Adaptive):
            self._learned = before.policy
        return PolicySession(options, self._around, self.journal, before, self._learned)


@contextlib.contextmanager
def _guarded(session: PolicySession) -> Iterator[None]:
    """Whatever goes wrong in a turn makes its session cool off."""
    try:
        yield
    except KtdError as error:
        session.cool(f"Its last move was refused: {error}")
        _log.warning("policy refused", error=str(error))
    except Exception:  # noqa: BLE001  # supervises: a policy must not end with its first bug
        session.cool("A turn of the policy failed; the daemon's log has the details.")
        _log.exception("policy failed")
