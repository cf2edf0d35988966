"""Joins an engine to the parts of the daemon that use it, and takes it away from them again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import structlog

from ktd.app.advice import Present, memory_advice
from ktd.app.starts import EngineStarts, Start
from ktd.app.statistics import Statistics, profile_shape
from ktd.engine.bridge import EngineBridge
from ktd.enginespec import EngineSpec
from ktd.errors import SwapTargetFailed
from ktd.http.gate import Gate
from ktd.placement.manager import PlacementManager

_log = structlog.get_logger(__name__)


class JoinedEngines:
    """Satisfies the supervisor's ``Engines`` protocol.

    ``describe`` is told fields of the status as they become known.
    """

    def __init__(
        self,
        starts: EngineStarts,
        *,
        gate: Gate,
        manager: PlacementManager,
        statistics: Statistics,
        describe: Callable[..., None],
    ) -> None:
        self._starts = starts
        self._gate = gate
        self._manager = manager
        self._statistics = statistics
        self._describe = describe
        self._start: Start | None = None

    async def next_spec(self) -> EngineSpec:
        """Plans the next start."""
        start = await self._starts.next_start()
        self._start = start
        model, memory = self._starts.summaries()
        if memory is not None:
            memory = replace(memory, total_slots=start.shape.total_slots)
        self._describe(model=model, memory=memory)
        return start.spec

    async def attach(self, bridge: EngineBridge, spec: EngineSpec) -> None:
        """Statistics, placement, then requests.

        Raises:
            SwapTargetFailed: the engine's slots are not what it was started with.
        """
        start = self._start
        if start is None or start.spec is not spec:
            raise RuntimeError("an engine is attached that was not planned here")
        found = await bridge.slots()
        held = tuple(
            tuple(sorted(expert for expert in found.get(layer, ()) if expert >= 0))
            for layer in start.shape.moe_layers
        )
        if held != start.experts:
            raise SwapTargetFailed(
                "The engine's slots hold other experts than it was started with."
            )
        facts = self._starts.facts
        if facts is None:
            raise RuntimeError("an engine was started for a model that nobody looked at")
        self._statistics.attach(bridge, spec, profile_shape(facts), spec_ranks(spec))
        await self._manager.attach(bridge, start.shape, start.experts, start.origin, start.actor)
        self._gate.open(spec.http_socket)

    async def detach(self, reason: str) -> None:
        """No more requests, swaps and counts; a swap that runs fails with ``reason``."""
        self._gate.close("The engine is not running; it is being started again or was stopped.")
        self._manager.detach(reason)
        self._statistics.detach()

    async def drain(self, seconds: float) -> None:
        """Requests that are in flight are finished, new ones refused."""
        self._gate.close("The server is being stopped and takes no new requests.")
        if not await self._gate.drained(seconds):
            _log.warning("requests cut off", in_flight=self._gate.in_flight, after_seconds=seconds)

    def advice(self) -> str:
        """What to do about too little memory."""
        start, facts = self._start, self._starts.facts
        if start is None or facts is None:
            return ""
        return memory_advice(
            Present(
                facts=facts,
                slots=start.shape.total_slots,
                ranks=spec_ranks(start.spec),
                device=start.spec.device,
                sglang_args=start.spec.sglang_args,
            )
        )


def spec_ranks(spec: EngineSpec) -> int:
    """How many ranks a spec asks SGLang for."""
    return int(spec.sglang_args[spec.sglang_args.index("--tp-size") + 1])
