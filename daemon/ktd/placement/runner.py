"""Carries out one swap: unmap, copy and publish batch by batch, or take it all back."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import structlog

from ktd.errors import EngineNotReady, KtdError, SwapNotCancellable, SwapTargetFailed
from ktd.placement.model import Move, PackedMoves, bytes_of
from ktd.placement.swap import SwapState
from ktd.placement.watch import Watched

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator

    from ktd.placement.model import ModelShape, Placement
    from ktd.placement.residency import Residency
    from ktd.placement.swap import BatchLimits, Swap, SwapTarget

T = TypeVar("T")
_log = structlog.get_logger(__name__)

# One is copied while the next one waits in the same queue.
_OPEN_BATCHES = 2
# Within this time whoever watches the engine says that it has ended, and why.
_NEWS_SECONDS = 2.0


class _CancelAsked(KtdError):
    """An operator asked for the swap to be cancelled."""


class _TargetGone(EngineNotReady):
    """The engine went away under the swap: nothing is left that could be rolled back."""


@dataclass(frozen=True, slots=True)
class SwapContext:
    """What a swap works with.

    Attributes:
        residency: Is kept up to date with every step.
        batch_ids: Never repeats an id over an engine's life.
        commit: Makes the target the current placement; called once, when everything is published.
            Must not fail.
        on_take_back: Called when a roll-back begins.
        clock: Unix seconds.
    """

    target: SwapTarget
    shape: ModelShape
    residency: Residency
    limits: BatchLimits
    batch_ids: Iterator[int]
    commit: Callable[[Swap], Awaitable[Placement]]
    on_take_back: Callable[[Swap], None]
    clock: Callable[[], float]


class SwapRunner:
    """The state machine of one swap.

    STAGING → COMMITTING → SUCCEEDED, or FAILED / CANCELLED once it was rolled back. An expert that
    is in no slot is computed by the CPU, so no outcome can make an answer wrong.
    """

    def __init__(self, swap: Swap, context: SwapContext) -> None:
        self._watched = Watched(swap)
        self._context = context
        self._cancel_asked = False
        self._gone: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._open: deque[tuple[int, tuple[Move, ...]]] = deque()
        self._published: list[tuple[Move, ...]] = []
        # The first failure of the roll-back itself.
        self.take_back_error: KtdError | None = None

    @property
    def swap(self) -> Swap:
        """The swap now."""
        return self._watched.value

    async def watch(self) -> AsyncIterator[Swap]:
        """The swap now, then each change that the caller keeps up with, to the terminal one."""
        async for swap in self._watched.watch():
            yield swap
            if swap.state.terminal:
                return

    def cancel(self) -> None:
        """Asks for a roll-back at the next step; asking twice is the same as once.

        Raises:
            SwapNotCancellable: it is committing, is being rolled back, or has ended.
        """
        swap = self.swap
        if swap.state is not SwapState.STAGING:
            raise SwapNotCancellable(
                f"Swap {swap.id} is {swap.state.name}: only a swap that is STAGING can be "
                "cancelled; undo takes back one that has succeeded."
            )
        if swap.error is not None:
            raise SwapNotCancellable(f"Swap {swap.id} has failed and is being rolled back.")
        self._cancel_asked = True

    def target_gone(self, reason: str) -> None:
        """The target will not answer any more; the swap fails with this sentence."""
        if not self._gone.done():
            self._gone.set_result(reason)

    async def run(self) -> None:
        """Carries the swap out; afterwards its state is terminal, whatever happened."""
        try:
            await self._run()
        except _TargetGone as error:
            self._end(SwapState.FAILED, error=error)
        except asyncio.CancelledError:
            self._end(SwapState.FAILED, error=EngineNotReady("The daemon is stopping."))
            raise
        except Exception as failure:  # noqa: BLE001  # supervises: a swap must never stay open
            self._end(SwapState.FAILED, error=_sentence(failure))

    async def _run(self) -> None:
        try:
            self._check_cancel()
            await self._load()
        except _TargetGone:
            raise
        except _CancelAsked:
            await self._take_back()
            self._end(SwapState.CANCELLED)
        except Exception as failure:  # noqa: BLE001  # whatever a target does, it is rolled back
            self._update(error=_sentence(failure))
            await self._take_back()
            self._end(SwapState.FAILED)
        else:
            placement = await self._context.commit(self.swap)
            self._end(SwapState.SUCCEEDED, revision=placement.revision, etag=placement.etag)

    async def _load(self) -> None:
        """Prepares each batch while the one before it is copied, so that copies never pause."""
        context = self._context
        waiting = deque(context.limits.split(self.swap.moves, context.shape.expert_bytes))
        while waiting and len(self._open) < _OPEN_BATCHES:
            await self._prepare(waiting.popleft())
        while self._open:
            batch_id, _ = self._open[0]
            self._check_cancel()
            await self._call(context.target.wait_copied(batch_id))
            if waiting:
                # A call waits for the end of a step, and copies do not wait for two of them.
                await self._prepare(waiting.popleft(), publish=batch_id)
            else:
                self._check_cancel()
                if len(self._open) == 1:
                    self._update(state=SwapState.COMMITTING)
                await self._call(context.target.publish(batch_id))
            self._first_is_published()

    async def _prepare(self, batch: tuple[Move, ...], *, publish: int | None = None) -> None:
        self._check_cancel()
        batch_id = next(self._context.batch_ids)
        self._open.append((batch_id, batch))
        self._context.residency.unmapped(batch)
        await self._call(self._context.target.prepare(batch_id, batch, publish=publish))

    def _first_is_published(self) -> None:
        _, batch = self._open.popleft()
        self._context.residency.published(batch)
        self._published.append(batch)
        self._advance(batch, 1)

    async def _take_back(self) -> None:
        self._context.on_take_back(self.swap)
        unpublished = tuple(reversed(self._open))
        for batch_id, _ in unpublished:
            await self._attempt(self._context.target.abort(batch_id))
        for _, batch in unpublished:
            await self._put_back(
                tuple(
                    Move(move.layer, None, move.evict) for move in batch if move.evict is not None
                )
            )
        for batch in reversed(self._published):
            await self._put_back(tuple(move.reversed() for move in batch))
            self._advance(batch, -1)
        if self.take_back_error is not None:
            # An engine that dies fails every call before it is known to be dead.
            await asyncio.wait({self._gone}, timeout=_NEWS_SECONDS)
            if self._gone.done():
                raise _TargetGone(self._gone.result())

    async def _put_back(self, batch: tuple[Move, ...]) -> None:
        """One batch of the roll-back; if it fails its slots stay empty and the others go on."""
        if not batch:
            return
        target, residency = self._context.target, self._context.residency
        batch_id = next(self._context.batch_ids)
        residency.unmapped(batch)
        done = (
            await self._attempt(target.prepare(batch_id, batch))
            and await self._attempt(target.wait_copied(batch_id))
            and await self._attempt(target.publish(batch_id))
        )
        if done:
            residency.published(batch)
        else:
            await self._attempt(target.abort(batch_id))

    async def _attempt(self, call: Coroutine[Any, Any, object]) -> bool:
        try:
            await self._call(call)
        except _TargetGone:
            raise
        except Exception as failure:  # noqa: BLE001  # the rest of the roll-back must go on
            error = _sentence(failure)
            self.take_back_error = self.take_back_error or error
            _log.warning("swap roll-back step failed", swap=self.swap.id, error=str(error))
            return False
        return True

    async def _call(self, call: Coroutine[Any, Any, T]) -> T:
        """Waits for the target, or for the news that it is gone, whatever comes first."""
        task = asyncio.ensure_future(call)
        either: set[asyncio.Future[Any]] = {task, self._gone}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        if self._gone.done():
            if not task.cancelled():
                task.exception()  # marked as seen
            raise _TargetGone(self._gone.result())
        if task.cancelled():  # as grpc.aio does when its channel is closed
            raise SwapTargetFailed(
                "The channel to the engine was closed during a step of the swap."
            )
        return task.result()

    def _check_cancel(self) -> None:
        if self._cancel_asked:
            raise _CancelAsked("The swap was cancelled.")

    def _advance(self, batch: tuple[Move, ...], sign: int) -> None:
        size = bytes_of(self._context.shape, batch)
        self._update(
            moves_done=self.swap.moves_done + sign * len(batch),
            bytes_done=self.swap.bytes_done + sign * size,
        )

    def _update(self, **changes: Any) -> None:
        self._watched.set(replace(self.swap, **changes))

    def _end(self, state: SwapState, **changes: Any) -> None:
        # A runner is kept as long as its swap, and so are the frames that an error has passed.
        self._open.clear()
        self._published.clear()
        moves = PackedMoves(self.swap.moves)
        self._update(state=state, end_time=self._context.clock(), moves=moves, **changes)
        for error in (self.swap.error, self.take_back_error):
            if error is not None:
                error.__traceback__ = error.__context__ = None


def _sentence(failure: Exception) -> KtdError:
    if isinstance(failure, KtdError):
        return failure
    _log.error("swap step raised", exc_info=failure)
    return SwapTargetFailed(
        f"A step of the swap failed unexpectedly ({type(failure).__name__}: {failure}); "
        "the daemon's log has the details."
    )
