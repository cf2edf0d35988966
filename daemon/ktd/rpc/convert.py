"""Domain values ↔ protobuf messages; with ``convert_stats.py``, nothing else in ktd knows both."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf import duration_pb2, timestamp_pb2

from ktd.errors import InvalidArgument
from ktd.placement.goals import ExplicitGoal, StrategyGoal
from ktd.rpc.names import PLACEMENT, plan_name, swap_name
from ktd.rpc.status import status_of
from ktd.v1 import engine_pb2, placement_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ktd.engine.status import EngineStatus
    from ktd.placement.forecast import Forecast
    from ktd.placement.goals import Goal
    from ktd.placement.history import History
    from ktd.placement.model import Experts, ModelShape, Move, Placement
    from ktd.placement.plans import Plan
    from ktd.placement.swap import Swap


def timestamp(seconds: float) -> timestamp_pb2.Timestamp:
    """Unix seconds as a Timestamp, to the microsecond that a float of today has."""
    stamp = timestamp_pb2.Timestamp()
    stamp.FromMicroseconds(round(seconds * 1e6))
    return stamp


def duration(seconds: float) -> duration_pb2.Duration:
    """Seconds as a Duration."""
    value = duration_pb2.Duration()
    value.FromNanoseconds(round(seconds * 1e9))
    return value


# Placement


def goal_of(
    request: placement_pb2.PlanPlacementRequest | placement_pb2.ApplyPlacementRequest,
) -> Goal:
    """What a request asks for, other than a plan.

    Raises:
        InvalidArgument: it has no goal.
    """
    if request.HasField("strategy"):
        return StrategyGoal(request.strategy.strategy)
    if request.HasField("target"):
        return ExplicitGoal(
            tuple((layer.layer, tuple(layer.gpu_experts)) for layer in request.target.layers),
            partial=request.target.partial,
        )
    raise InvalidArgument("The request has no goal: give a strategy or a target.")


def restart_goal_of(request: placement_pb2.RestartWithPlacementRequest) -> Goal:
    """The strategy that a request names.

    Raises:
        InvalidArgument: it names none.
    """
    if request.HasField("strategy"):
        return StrategyGoal(request.strategy.strategy)
    raise InvalidArgument("The request has no goal: give a strategy, or a plan that one made.")


def placement_message(placement: Placement) -> placement_pb2.Placement:
    """The committed placement."""
    return placement_pb2.Placement(
        name=PLACEMENT,
        revision=placement.revision,
        etag=placement.etag,
        update_time=timestamp(placement.update_time),
        layers=layer_messages(placement.shape, placement.experts),
        origin=placement.origin,
    )


def plan_message(plan: Plan) -> placement_pb2.Plan:
    """A plan with its moves, what it predicts and the placement it leads to."""
    restart = plan.restart
    return placement_pb2.Plan(
        name=plan_name(plan.id),
        etag=plan.etag,
        expire_time=timestamp(plan.expire_time),
        moves=_moves(plan.moves),
        bytes=plan.bytes,
        layers=layer_messages(plan.shape, plan.experts),
        hit_rate_before=plan.before.hit_rate,
        hit_rate_after=plan.after.hit_rate,
        notes=plan.notes,
        copy_duration=duration(plan.copy_seconds),
        before=_forecast(plan.before),
        after=_forecast(plan.after),
        restart=None
        if restart is None
        else placement_pb2.RestartOffer(
            layers=layer_messages(restart.shape, restart.experts),
            forecast=_forecast(restart.forecast),
        ),
        slot_bytes=plan.shape.total_slots * plan.shape.expert_bytes,
    )


def swap_message(swap: Swap, *, with_moves: bool = True) -> placement_pb2.Swap:
    """A swap; one that was only validated has no name.

    The moves of a large model take 10 ms and 100 kB: too much for each step of progress.
    """
    return placement_pb2.Swap(
        name=swap_name(swap.id),
        state=placement_pb2.SwapState.ValueType(swap.state),
        create_time=timestamp(swap.create_time),
        end_time=timestamp(swap.end_time) if swap.end_time is not None else None,
        bytes_done=swap.bytes_done,
        bytes_total=swap.bytes_total,
        moves_done=swap.moves_done,
        moves_total=len(swap.moves),
        error=status_of(swap.error) if swap.error is not None else None,
        revision=swap.revision,
        origin=swap.origin,
        moves=_moves(swap.moves) if with_moves else (),
        etag=swap.etag,
        notes=swap.notes,
    )


def history_messages(history: History) -> list[placement_pb2.HistoryEntry]:
    """Applied placements, newest first."""
    return [
        placement_pb2.HistoryEntry(
            revision=entry.revision,
            time=timestamp(entry.time),
            origin=entry.origin,
            moves=entry.moves,
            bytes=entry.bytes,
            actor=entry.actor,
            undoable=history.undoable(entry.revision),
        )
        for entry in history.entries
    ]


def layer_messages(shape: ModelShape, experts: Experts) -> Iterable[placement_pb2.LayerPlacement]:
    """Slots and experts of each layer."""
    return (
        placement_pb2.LayerPlacement(
            layer=layer, num_experts=shape.num_experts, slots=slots, gpu_experts=chosen
        )
        for layer, slots, chosen in zip(shape.moe_layers, shape.slots, experts, strict=True)
    )


def _forecast(forecast: Forecast) -> placement_pb2.Forecast:
    return placement_pb2.Forecast(
        hit_rate=forecast.hit_rate,
        step_duration=duration(forecast.step_seconds),
        tokens_per_second=forecast.tokens_per_second,
        cpu_bytes_per_step=round(forecast.cpu_bytes),
    )


def _moves(moves: Iterable[Move]) -> Iterable[placement_pb2.Move]:
    return (
        placement_pb2.Move(layer=move.layer, evict=move.evict, load=move.load) for move in moves
    )


# Engine


def engine_message(status: EngineStatus, placement_revision: int) -> engine_pb2.EngineStatus:
    """The engine's status, with the revision that the placement has."""
    message = engine_pb2.EngineStatus(
        name=status.name,
        phase=engine_pb2.EnginePhase.ValueType(status.phase),
        message=status.message,
        phase_time=timestamp(status.phase_time),
        versions=engine_pb2.Versions(
            ktd=status.versions.ktd, sglang=status.versions.sglang, torch=status.versions.torch
        ),
        restarts=status.restarts,
        requests_in_flight=status.requests_in_flight,
        placement_revision=status.placement_revision or placement_revision,
        http_address=status.http_address,
        engine_id=status.engine_id,
    )
    if status.next_start_time is not None:
        message.next_start_time.CopyFrom(timestamp(status.next_start_time))
    if (progress := status.progress) is not None:
        message.progress.bytes_done = progress.bytes_done
        message.progress.bytes_total = progress.bytes_total
    if (model := status.model) is not None:
        message.model.CopyFrom(
            engine_pb2.Model(
                path=model.path,
                served_name=model.served_name,
                architecture=model.architecture,
                expert_format=model.expert_format,
                cpu_expert_format=model.cpu_expert_format,
                num_layers=model.num_layers,
                num_moe_layers=model.num_moe_layers,
                num_experts=model.num_experts,
                experts_per_token=model.experts_per_token,
                hidden_size=model.hidden_size,
                expert_intermediate_size=model.expert_intermediate_size,
            )
        )
    if (memory := status.memory) is not None:
        message.memory.CopyFrom(
            engine_pb2.Memory(
                host_store_bytes=memory.host_store_bytes,
                slot_bytes=memory.slot_bytes,
                expert_bytes=memory.expert_bytes,
                host_memory=memory.host_memory,
                host_copied_bytes=memory.host_copied_bytes,
                total_slots=memory.total_slots,
                total_experts=memory.total_experts,
            )
        )
    message.ranks.extend(
        engine_pb2.Rank(
            rank=rank.rank,
            pid=rank.pid,
            isa=rank.isa,
            threads=rank.threads,
            moe_layers_hooked=rank.moe_layers_hooked,
            device=rank.device,
            prefill_graphs=rank.prefill_graphs,
            prefill_threshold=rank.prefill_threshold,
            prefill_buffer_bytes=rank.prefill_buffer_bytes,
        )
        for rank in status.ranks
    )
    message.conditions.extend(
        engine_pb2.Condition(
            reason=condition.reason, message=condition.message, time=timestamp(condition.time)
        )
        for condition in status.conditions
    )
    return message
