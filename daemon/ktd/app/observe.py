"""What health checks and metrics see of the daemon."""

from __future__ import annotations

from dataclasses import dataclass

from ktd.engine.supervisor import Supervisor
from ktd.errors import KtdError
from ktd.http.gate import Gate
from ktd.http.metrics import EngineSample, LayerSample
from ktd.placement.manager import PlacementManager
from ktd.placement.swap import SwapState
from ktd.stats.hub import StatsHub

_RESULTS = (SwapState.SUCCEEDED, SwapState.FAILED, SwapState.CANCELLED)


@dataclass(frozen=True, slots=True)
class Observer:
    """Satisfies the front's ``Health`` and ``MetricsSource`` protocols; asks no process."""

    supervisor: Supervisor
    manager: PlacementManager
    hub: StatsHub
    gate: Gate

    def complaint(self) -> str:
        """Why requests are not served, or an empty string."""
        if self.gate.upstream is None:
            return self.supervisor.status().message or self.gate.closed_reason
        return self.supervisor.complaint()

    def in_flight(self) -> int:
        """Requests inside."""
        return self.gate.in_flight

    def sample(self) -> EngineSample:
        """Everything that ``/metrics`` exports."""
        status = self.supervisor.status()
        counted = self.hub.sample()
        outcomes = self.manager.swaps.outcomes
        return EngineSample(
            info={
                "version": status.versions.ktd,
                "sglang": status.versions.sglang,
                "torch": status.versions.torch,
            },
            serving=not self.complaint(),
            revision=self.manager.revision,
            restarts=status.restarts,
            total_experts=status.memory.total_experts if status.memory else 0,
            layers=self._layers(),
            swaps={state.name.lower(): outcomes[state.name] for state in _RESULTS},
            swap_bytes=counted.swap_bytes if counted else 0,
            move_calls=counted.move_calls if counted else 0,
            move_call_seconds=counted.move_call_seconds if counted else 0.0,
            cpu_weight_bytes=counted.cpu_weight_bytes if counted else 0,
            tokens={
                "decode": counted.decode_tokens if counted else 0,
                "prefill": counted.prefill_tokens if counted else 0,
            },
            steps={
                "decode": counted.decode_steps if counted else 0,
                "prefill": counted.prefill_steps if counted else 0,
            },
        )

    def _layers(self) -> tuple[LayerSample, ...]:
        counted = self.hub.sample()
        if counted is None:
            return ()
        try:
            experts = self.manager.placement().experts
        except KtdError:
            experts = tuple(() for _ in counted.moe_layers)
        return tuple(
            LayerSample(layer, gpu, cpu, len(chosen))
            for layer, (gpu, cpu), chosen in zip(
                counted.moe_layers, counted.pairs.sum(axis=1).tolist(), experts, strict=True
            )
        )
