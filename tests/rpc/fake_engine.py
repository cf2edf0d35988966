"""An engine that changes phases when asked to, and nothing else."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from ktd.engine.status import (
    Condition,
    EnginePhase,
    EngineStatus,
    MemorySummary,
    ModelSummary,
    RankSummary,
    Versions,
)
from ktd.errors import EngineNotStopped

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from ktd.placement.model import ModelShape


def ready_status(shape: ModelShape, engine_id: str) -> EngineStatus:
    """A status as an engine that serves ``shape`` would have it."""
    layers = len(shape.moe_layers)
    return EngineStatus(
        phase=EnginePhase.READY,
        message="Serving.",
        phase_time=time.time(),
        versions=Versions(ktd="0.1.0", sglang="0.5.23", torch="2.14.1"),
        model=ModelSummary(
            path="models/ktd-tiny",
            served_name="ktd-tiny",
            architecture="Qwen3MoeForCausalLM",
            expert_format="bf16",
            cpu_expert_format="bf16",
            num_layers=layers,
            num_moe_layers=layers,
            num_experts=shape.num_experts,
            experts_per_token=2,
            hidden_size=64,
            expert_intermediate_size=32,
        ),
        memory=MemorySummary(
            host_store_bytes=layers * shape.num_experts * shape.expert_bytes,
            slot_bytes=shape.total_slots * shape.expert_bytes,
            expert_bytes=shape.expert_bytes,
            total_slots=shape.total_slots,
            total_experts=layers * shape.num_experts,
        ),
        ranks=(RankSummary(0, 4242, "avx512_bf16", 4, layers, "cpu"),),
        http_address="http://127.0.0.1:30000",
        engine_id=engine_id,
    )


class FakeEngine:
    """An :class:`~ktd.rpc.ports.EngineControl`; ``stop`` takes as long as the test says."""

    def __init__(self, status: EngineStatus | None = None) -> None:
        self._status = status or EngineStatus()
        self._changed = asyncio.Event()
        self.stop_gate = asyncio.Event()
        self.stop_gate.set()
        self.drains: list[float | None] = []
        # What happens when an engine starts, before it is READY.
        self.on_start: Callable[[], Awaitable[None]] | None = None
        self.stopped = 0

    def set(self, **changes: object) -> None:
        self._status = replace(self._status, **changes)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def set_condition(self, reason: str, message: str | None) -> None:
        """What a placement manager's ``on_condition`` wants."""
        kept = tuple(item for item in self._status.conditions if item.reason != reason)
        new = () if message is None else (Condition(reason, message, time.time()),)
        if kept + new != self._status.conditions:
            self.set(conditions=kept + new)

    def status(self) -> EngineStatus:
        return self._status

    async def watch(self) -> AsyncIterator[EngineStatus]:
        while True:
            changed = self._changed
            yield self._status
            await changed.wait()

    async def start(self) -> EngineStatus:
        if self._status.phase not in (EnginePhase.STOPPED, EnginePhase.FAILED):
            raise EngineNotStopped(f"The engine is {self._status.phase.name}; stop it first.")
        if self.on_start is not None:
            await self.on_start()
        self.set(phase=EnginePhase.READY, message="Serving.", phase_time=time.time())
        return self._status

    async def stop(self, drain: float | None) -> EngineStatus:
        self.drains.append(drain)
        self.set(phase=EnginePhase.DRAINING, message="Finishing requests.")
        await self.stop_gate.wait()
        self.stopped += 1
        self.set(phase=EnginePhase.STOPPED, message="Stopped on request.", phase_time=time.time())
        return self._status

    async def restart(self, drain: float | None) -> EngineStatus:
        await self.stop(drain)
        return await self.start()
