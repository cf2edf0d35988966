"""Ranks with slots, in memory: what a swap does to them, and a check of what it must never do."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

from ktd.errors import SwapTargetFailed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ktd.placement.model import Experts, ModelShape, Move

STEPS = ("prepare", "wait_copied", "publish", "abort")


class FakeRank:
    """Slot tables of one rank; asserts that a slot that is being written is never mapped."""

    def __init__(self, shape: ModelShape, experts: Experts) -> None:
        self.shape = shape
        self.slots = dict(zip(shape.moe_layers, shape.slots, strict=True))
        self.mapped: dict[int, dict[int, int]] = {
            layer: {expert: slot for slot, expert in enumerate(chosen)}
            for layer, chosen in zip(shape.moe_layers, experts, strict=True)
        }
        self.content: dict[tuple[int, int], int | None] = {
            (layer, slot): expert
            for layer, table in self.mapped.items()
            for expert, slot in table.items()
        }
        self.batches: dict[int, list[tuple[int, int, int | None]]] = {}

    def prepare(self, batch_id: int, moves: Sequence[Move]) -> None:
        taken: list[tuple[int, int, int | None]] = []
        self.batches[batch_id] = taken
        for move in moves:
            table = self.mapped[move.layer]
            evict = move.evict
            slot = self._free_slot(move.layer) if evict is None else table.pop(evict)
            assert move.load not in table, f"expert {move.load} is mapped already"
            assert all(
                (layer, load) != (move.layer, move.load)
                for batch in self.batches.values()
                for layer, _, load in batch
                if load is not None
            ), f"expert {move.load} is being copied already"
            taken.append((move.layer, slot, move.load))
            self.content[move.layer, slot] = None
        self.check()

    def publish(self, batch_id: int) -> None:
        for layer, slot, load in self.batches.pop(batch_id):
            if load is not None:
                self.content[layer, slot] = load
                self.mapped[layer][load] = slot
        self.check()

    def abort(self, batch_id: int, moves: Sequence[Move]) -> None:
        """However far the batch came: what it touched is unmapped."""
        self.batches.pop(batch_id, None)
        for move in moves:
            for expert in (move.evict, move.load):
                self.mapped[move.layer].pop(expert, None)
        self.check()

    def check(self) -> None:
        writing = {(layer, slot) for batch in self.batches.values() for layer, slot, _ in batch}
        for layer, table in self.mapped.items():
            assert len(table) <= self.slots[layer]
            for expert, slot in table.items():
                assert (layer, slot) not in writing, "a slot that is being written is mapped"
                assert self.content[layer, slot] == expert, "a slot holds another expert"

    def _free_slot(self, layer: int) -> int:
        used = set(self.mapped[layer].values())
        used |= {slot for batch in self.batches.values() for at, slot, _ in batch if at == layer}
        return min(set(range(self.slots[layer])) - used)


class FakeTarget:
    """A :class:`~ktd.placement.swap.SwapTarget` over several fake ranks.

    ``fail_on(step, n)`` makes the n-th call of a step fail (from 1), after rank 0 has done it if
    ``partial``. ``hold(step)`` stops calls of a step until the event is set. ``delay`` is seconds
    per step.
    """

    def __init__(self, shape: ModelShape, experts: Experts, *, ranks: int = 2) -> None:
        self.shape = shape
        self.ranks = [FakeRank(shape, experts) for _ in range(ranks)]
        self.calls: list[tuple[str, int]] = []
        self.delay: dict[str, float] = {}
        self._counts: Counter[str] = Counter()
        self._failures: dict[tuple[str, int], tuple[Exception, bool]] = {}
        self._holds: dict[str, asyncio.Event] = {}
        self._reached: dict[str, asyncio.Event] = {step: asyncio.Event() for step in STEPS}
        self._moves: dict[int, tuple[Move, ...]] = {}
        self.swap_bytes = 0

    def fail_on(
        self, step: str, nth: int = 1, *, partial: bool = False, error: Exception | None = None
    ) -> None:
        failure = error or SwapTargetFailed(f"rank 1 failed in {step}")
        self._failures[step, self._counts[step] + nth] = failure, partial

    def hold(self, step: str) -> asyncio.Event:
        self._holds[step] = asyncio.Event()
        self._reached[step].clear()
        return self._holds[step]

    async def reached(self, step: str) -> None:
        """Returns once a call of ``step`` has begun since it was held."""
        await self._reached[step].wait()

    @property
    def experts(self) -> Experts:
        tables = [
            tuple(tuple(sorted(table)) for table in rank.mapped.values()) for rank in self.ranks
        ]
        assert all(table == tables[0] for table in tables), "ranks disagree"
        return tables[0]

    async def prepare(
        self, batch_id: int, moves: Sequence[Move], *, publish: int | None = None
    ) -> None:
        self._moves[batch_id] = tuple(moves)
        if publish is not None:
            await self._step("publish", publish, lambda rank: rank.publish(publish))
        await self._step("prepare", batch_id, lambda rank: rank.prepare(batch_id, moves))

    async def wait_copied(self, batch_id: int) -> int:
        await self._step("wait_copied", batch_id, lambda _rank: None)
        loads = sum(move.load is not None for move in self._moves[batch_id])
        self.swap_bytes += loads * self.shape.expert_bytes
        return loads * self.shape.expert_bytes

    async def publish(self, batch_id: int) -> None:
        await self._step("publish", batch_id, lambda rank: rank.publish(batch_id))

    async def abort(self, batch_id: int) -> None:
        moves = self._moves[batch_id]
        await self._step("abort", batch_id, lambda rank: rank.abort(batch_id, moves))

    async def _step(self, step, batch_id, act) -> None:
        self.calls.append((step, batch_id))
        self._counts[step] += 1
        failure = self._failures.pop((step, self._counts[step]), None)
        self._reached[step].set()
        if step in self._holds:
            await self._holds[step].wait()
        await asyncio.sleep(self.delay.get(step, 0.0))
        if failure is not None:
            error, partial = failure
            if partial:
                act(self.ranks[0])
            raise error
        for rank in self.ranks:
            act(rank)
