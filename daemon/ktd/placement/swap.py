"""A swap as others see it, the port through which it acts, and how moves become batches."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Protocol

from ktd.placement.model import POLICY_ORIGIN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ktd.errors import KtdError
    from ktd.placement.model import Move


# Moves of a batch: fewer are prepared in less time than a call takes.
_WORTH_HALVING = 8


class SwapTarget(Protocol):
    """The ranks of a running engine; ``ktd.engine.bridge`` satisfies it.

    Each call reaches every rank and ends, with a deadline of the target's own; steps of inference
    run between any two of them. Each raises ``SwapTargetFailed`` with one sentence. Two batches may
    be open, prepared and not published; they are copied and published in order.
    """

    async def prepare(
        self, batch_id: int, moves: Sequence[Move], *, publish: int | None = None
    ) -> None:
        """Unmaps the victims on every rank and starts the copies.

        In the same pause between two steps, and before that, it can ``publish`` a batch: a step is
        as long as a third of a batch's copies. Where either fails on a rank the call does.
        """
        ...

    async def wait_copied(self, batch_id: int) -> int:
        """Returns when the copies have finished: bytes copied, over all ranks."""
        ...

    async def publish(self, batch_id: int) -> None:
        """Maps the loaded experts on every rank."""
        ...

    async def abort(self, batch_id: int) -> None:
        """Leaves the slots of the batch empty on every rank, however far the batch had come there.

        Also after a ``prepare`` or ``publish`` that failed, or that reached some ranks only.
        """
        ...


class SwapState(IntEnum):
    """Where a swap is; the numbers are those of ``ktd.v1.SwapState``."""

    STAGING = 1
    COMMITTING = 2
    SUCCEEDED = 3
    FAILED = 4
    CANCELLED = 5

    @property
    def terminal(self) -> bool:
        """Whether the swap has ended."""
        return self >= SwapState.SUCCEEDED


@dataclass(frozen=True, slots=True)
class Swap:
    """One swap at one moment.

    Attributes:
        id: Unique over the daemon's life; empty for a swap that was only validated.
        create_time: Unix seconds; so is ``end_time``.
        moves_done: Moves in effect; falls again while a swap is rolled back.
        bytes_done: Bytes of the moves in effect.
        error: Why it failed, from the moment of the failure on.
        revision: Of the placement that it committed; 0 before.
        etag: Of that placement; empty before.
        notes: Sentences an operator should read, for example that the policy is paused.
    """

    id: str
    state: SwapState
    origin: str
    moves: Sequence[Move]
    create_time: float
    bytes_total: int
    moves_done: int = 0
    bytes_done: int = 0
    end_time: float | None = None
    error: KtdError | None = None
    revision: int = 0
    etag: str = ""
    notes: tuple[str, ...] = ()

    @property
    def by_policy(self) -> bool:
        """Whether a policy wanted it, not an operator."""
        return self.origin.startswith(POLICY_ORIGIN)


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How much one batch may unmap: tens of milliseconds of copying, few slots at once."""

    moves: int = 32
    bytes: int = 256 << 20

    @classmethod
    def of_operator(cls, device: str, rate: float | None) -> BatchLimits:
        """Limits for what an operator applies, which goes as fast as its copies.

        The calls of a batch wait for a step each, while the batch before it is copied. Over a
        GPU's link 3 GiB take 60 ms; at a limited ``rate``, bytes per second, a batch takes no
        longer than that either.
        """
        return cls() if device == "cpu" else cls(moves=1024, bytes=cls._at(rate, 3 << 30))

    @classmethod
    def of_policy(cls, device: str, rate: float | None) -> BatchLimits:
        """Limits for what a policy moves, two calls each half second; ``rate`` as above.

        A GPU's link brings 2 GiB in 40 ms, the time of two steps; with the default's 256 MiB a
        policy would take minutes to follow a workload that changes.
        """
        return cls() if device == "cpu" else cls(moves=512, bytes=cls._at(rate, 2 << 30))

    @classmethod
    def _at(cls, rate: float | None, most: int) -> int:
        """Bytes of 60 ms at a limited rate; not less than the default's, nor more than ``most``."""
        return most if rate is None else max(cls().bytes, min(most, int(rate * 0.06)))

    def split(self, moves: Sequence[Move], expert_bytes: int) -> list[tuple[Move, ...]]:
        """``moves`` in order, in batches of at most that many moves and bytes, at least one move.

        Moves that copy nothing count as moves only. Where there are several batches, of eight moves
        or more, the first is half of one: nothing is copied before it is prepared, which takes
        milliseconds. A quarter was copied before the second was prepared.
        """
        batches: list[tuple[Move, ...]] = []
        batch: list[Move] = []
        size = 0
        for move in moves:
            cost = expert_bytes if move.load is not None else 0
            if batch and (len(batch) >= self.moves or size + cost > self.bytes):
                batches.append(tuple(batch))
                batch, size = [], 0
            batch.append(move)
            size += cost
        if batch:
            batches.append(tuple(batch))
        if len(batches) > 1 and len(batches[0]) >= _WORTH_HALVING:
            half = len(batches[0]) // 2
            batches[:1] = [batches[0][:half], batches[0][half:]]
        return batches
