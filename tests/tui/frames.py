"""Fixed values for the monitor: an engine, a placement, activity, a plan and a swap."""

from __future__ import annotations

from ktd.client import (
    Condition,
    EnginePhase,
    EngineStatus,
    LayerPlacement,
    Move,
    Placement,
    Plan,
    Swap,
    SwapState,
)
from ktd_tui.activity import Activity, LayerActivity


def status(phase: EnginePhase = EnginePhase.ENGINE_PHASE_READY, *conditions: str) -> EngineStatus:
    value = EngineStatus(
        name="engines/default",
        phase=phase,
        message="Requests are served.",
        engine_id="one",
        conditions=[Condition(reason="NOTED", message=text) for text in conditions],
    )
    value.model.served_name = "ktd-tiny"
    value.model.num_moe_layers = 6
    value.model.num_experts = 32
    value.model.expert_format = "bf16"
    value.ranks.add(rank=0, isa="avx512_bf16")
    return value


def placement(layers: int = 6, experts: int = 32, slots: int = 8) -> Placement:
    return Placement(
        revision=3,
        etag='"e-3"',
        origin="frequency",
        layers=[
            LayerPlacement(
                layer=layer,
                num_experts=experts,
                slots=slots,
                gpu_experts=sorted((layer * 5 + i * 3) % experts for i in range(slots)),
            )
            for layer in range(layers)
        ],
    )


def activity(layers: int = 6, experts: int = 32) -> Activity:
    rows = []
    for layer in range(layers):
        heat = tuple(float((expert * 7 + layer * 11) % experts) for expert in range(experts))
        counts = tuple(int(one) for one in heat)
        rows.append(LayerActivity(layer, counts, counts, heat))
    return Activity(
        layers=tuple(rows),
        tokens_per_second=88.4,
        window_hit_rate=0.631,
        total_hit_rate=0.402,
        decode_tokens=1200,
        prefill_tokens=3400,
        placement_revision=3,
        engine_id="one",
    )


def plan() -> Plan:
    return Plan(
        name="engines/default/plans/1",
        bytes=3 << 20,
        hit_rate_before=0.25,
        hit_rate_after=0.66,
        notes=["The statistics hold only 40 tokens."],
        moves=[Move(layer=0, evict=1, load=9), Move(layer=0, load=12), Move(layer=4, evict=2)],
    )


def swap(state: SwapState = SwapState.SWAP_STATE_STAGING) -> Swap:
    return Swap(
        name="engines/default/swaps/1",
        state=state,
        origin="frequency",
        moves=[Move(layer=0, evict=0, load=1), Move(layer=1, evict=5, load=2)],
        moves_done=1,
        moves_total=2,
        bytes_done=1 << 20,
        bytes_total=2 << 20,
        revision=4 if state == SwapState.SWAP_STATE_SUCCEEDED else 0,
    )
