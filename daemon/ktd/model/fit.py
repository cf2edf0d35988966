"""How many experts' slots fit: the sum behind ``ktd placement fit`` and ``auto``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ktd.model.device_needs import device_needs, graph_bytes, most_slots, slots_that_fit
from ktd.model.memory import needs_of, size_text

if TYPE_CHECKING:
    from ktd.model.demand import Demand
    from ktd.model.facts import ModelFacts

# For activations and what grows while serving.
_HOST_RESERVE = 0.05
# Slots in host memory cost it twice and win nothing: enough of them to try placement out.
_SHARE_WITHOUT_GPU = 0.25


@dataclass(frozen=True, slots=True)
class Fit:
    """A budget.

    Attributes:
        slots: Over all layers: what ``--gpu-experts-ratio auto`` takes.
        largest: The most that fit; on a host with a GPU the same.
        free_bytes: Memory that the sum begins with.
        room_bytes: What of it is left for slots.
        assumptions: Sentences: what was subtracted, and what was taken for granted.
    """

    slots: int
    largest: int
    total_experts: int
    num_layers: int
    expert_bytes: int
    free_bytes: int
    room_bytes: int
    assumptions: tuple[str, ...]

    @property
    def ratio(self) -> float:
        """The budget as ``--gpu-experts-ratio``, rounded down to what gives ``slots`` at most."""
        return int(self.slots / self.total_experts * 1e4) / 1e4 if self.total_experts else 0.0

    @property
    def slot_bytes(self) -> int:
        """What the slots take."""
        return self.slots * self.expert_bytes


def fit_before_start(facts: ModelFacts, demand: Demand, free_bytes: int) -> Fit:
    """For an engine that is to be started.

    Args:
        facts: The model.
        demand: What it is started for.
        free_bytes: Of the memory that slots are in: the GPUs', all ranks together, or the host's.
    """
    if demand.device != "cpu":
        return _on_device_before_start(facts, demand, free_bytes)
    kv_bytes = facts.kv_cache.bytes_for(demand.kv_tokens, demand.ranks)
    needs = needs_of(facts, slots=0, ranks=demand.ranks, device=demand.device)
    reserve = int(free_bytes * _HOST_RESERVE)
    return _on_host(
        facts,
        free_bytes,
        free_bytes - needs.total - needs.cached - kv_bytes - reserve,
        (
            f"{size_text(free_bytes)} of host memory are free.",
            f"The engine takes {needs.sum_text()} of host memory.",
            f"The KV cache holds {demand.kv_tokens} tokens and takes {size_text(kv_bytes)}.",
            f"{size_text(reserve)} are kept for activations and what grows while serving.",
            *_cached(needs.cached, demand.device),
        ),
    )


def fit_while_running(facts: ModelFacts, demand: Demand, slots: int, free_bytes: int) -> Fit:
    """For an engine that runs with ``slots`` slots: what it could have after a restart.

    Weights and KV cache are there already, so only its slots come back.
    """
    back = slots * facts.expert_bytes
    # What is free counts the page cache as if nobody read it.
    cached = facts.host_store_bytes - facts.own_expert_bytes
    if demand.device != "cpu":
        return _on_device_while_running(facts, demand, slots, free_bytes)
    reserve = int(free_bytes * _HOST_RESERVE)
    return _on_host(
        facts,
        free_bytes,
        free_bytes + back - reserve - cached,
        (
            f"{size_text(free_bytes)} of host memory are free beside the running engine.",
            _back(slots, back),
            f"{size_text(reserve)} are kept for activations and what grows while serving.",
            *_cached(cached, demand.device),
        ),
    )


def _on_device_before_start(facts: ModelFacts, demand: Demand, free_bytes: int) -> Fit:
    slots, room = slots_that_fit(facts, demand, free_bytes)
    needs = device_needs(facts, demand, slots=slots, free=free_bytes)
    return _fit(
        facts,
        room,
        (
            f"{size_text(free_bytes)} of device memory are free.",
            f"Beside slots the engine takes {needs.sum_text(facts, demand, slots=False)} of it.",
            *_cached(facts.host_store_bytes - facts.own_expert_bytes, demand.device),
        ),
        slots=slots,
        largest=slots,
        free_bytes=free_bytes,
    )


def _on_device_while_running(facts: ModelFacts, demand: Demand, slots: int, free_bytes: int) -> Fit:
    """Its graphs are captured; what its steps took is not told from what is still to be kept."""
    before = demand.gpu_bytes * demand.ranks or free_bytes
    now = device_needs(facts, demand, slots=slots, free=before)
    kept = max(0, now.working - graph_bytes(facts, demand))

    def room_of(other: int) -> int:
        stream = device_needs(facts, demand, slots=other, free=before).stream
        return free_bytes + now.slots + now.stream - stream - kept

    fits, room = most_slots(facts, room_of)
    return _fit(
        facts,
        room,
        (
            f"{size_text(free_bytes)} of device memory are free beside the running engine.",
            _back(slots, now.slots),
            f"{size_text(kept)} are kept free for steps of {demand.chunk} tokens.",
            *_cached(facts.host_store_bytes - facts.own_expert_bytes, demand.device),
        ),
        slots=fits,
        largest=fits,
        free_bytes=free_bytes,
    )


def _back(slots: int, size: int) -> str:
    return f"Its {slots} slots give {size_text(size)} back; weights and KV cache stay as they are."


def _cached(size: int, device: str) -> tuple[str, ...]:
    if not size:
        return ()
    room = "; slots in host memory leave them that room" if device == "cpu" else ""
    return (
        f"{size_text(size)} of experts are used from the page cache (--host-memory mmap){room}.",
    )


def _on_host(facts: ModelFacts, free_bytes: int, room: int, assumptions: tuple[str, ...]) -> Fit:
    largest = min(facts.total_experts, max(0, room) // facts.expert_bytes)
    slots = min(largest, int(facts.total_experts * _SHARE_WITHOUT_GPU))
    if slots < largest:
        told = (
            "Without a GPU slots are host memory and win no speed, so a quarter of the "
            f"{facts.total_experts} experts is enough; up to {largest} would fit."
        )
        assumptions = (*assumptions, told)
    return _fit(facts, room, assumptions, slots=slots, largest=largest, free_bytes=free_bytes)


def _fit(
    facts: ModelFacts,
    room: int,
    assumptions: tuple[str, ...],
    *,
    slots: int,
    largest: int,
    free_bytes: int,
) -> Fit:
    return Fit(
        slots=slots,
        largest=largest,
        total_experts=facts.total_experts,
        num_layers=len(facts.moe_layers),
        expert_bytes=facts.expert_bytes,
        free_bytes=free_bytes,
        room_bytes=max(0, room),
        assumptions=assumptions,
    )
