"""How many experts' slots fit: the sum behind ``ktd placement fit`` and ``auto``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ktd.model.memory import GIB, needs_of

if TYPE_CHECKING:
    from ktd.model.facts import ModelFacts

# For activations and what grows while serving; of device memory also for graphs and the driver.
_HOST_RESERVE = 0.05
_DEVICE_RESERVE = 0.15
# Slots in host memory cost it twice and win nothing: enough of them to try placement out.
_SHARE_WITHOUT_GPU = 0.25


@dataclass(frozen=True, slots=True)
class Demand:
    """What an engine is asked for: ``kv_tokens`` is the size of its KV cache."""

    kv_tokens: int
    ranks: int
    device: str


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
    kv_bytes = demand.kv_tokens * facts.kv_cache.bytes_per_token(demand.ranks)
    needs = needs_of(facts, slots=0, ranks=demand.ranks, device=demand.device)
    on_host = demand.device == "cpu"
    taken = needs.total + needs.cached if on_host else facts.other_bytes
    reserve = int(free_bytes * (_HOST_RESERVE if on_host else _DEVICE_RESERVE))
    what = (
        f"{needs.sum_text()} of host memory"
        if on_host
        else f"{_size(facts.other_bytes)} weights that are not experts"
    )
    return _fit(
        facts,
        demand.device,
        free_bytes,
        free_bytes - taken - kv_bytes - reserve,
        (
            f"{_size(free_bytes)} of {_where(demand.device)} memory are free.",
            f"The engine takes {what}.",
            f"The KV cache holds {demand.kv_tokens} tokens and takes {_size(kv_bytes)}.",
            f"{_size(reserve)} are kept for activations and what grows while serving.",
            *_cached(needs.cached, demand.device),
        ),
    )


def fit_while_running(facts: ModelFacts, slots: int, device: str, free_bytes: int) -> Fit:
    """For an engine that runs with ``slots`` slots: what it could have after a restart.

    Weights and KV cache are there already, so only its slots come back.
    """
    back = slots * facts.expert_bytes
    # What is free counts the page cache as if nobody read it.
    cached = facts.host_store_bytes - facts.own_expert_bytes
    reserve = int(free_bytes * (_HOST_RESERVE if device == "cpu" else _DEVICE_RESERVE))
    return _fit(
        facts,
        device,
        free_bytes,
        free_bytes + back - reserve - (cached if device == "cpu" else 0),
        (
            f"{_size(free_bytes)} of {_where(device)} memory are free beside the running engine.",
            f"Its {slots} slots give {_size(back)} back; weights and KV cache stay as they are.",
            f"{_size(reserve)} are kept for activations and what grows while serving.",
            *_cached(cached, device),
        ),
    )


def _cached(size: int, device: str) -> tuple[str, ...]:
    if not size:
        return ()
    room = "; slots in host memory leave them that room" if device == "cpu" else ""
    return (f"{_size(size)} of experts are used from the page cache (--host-memory mmap){room}.",)


def _fit(
    facts: ModelFacts, device: str, free_bytes: int, room: int, assumptions: tuple[str, ...]
) -> Fit:
    largest = min(facts.total_experts, max(0, room) // facts.expert_bytes)
    slots = largest
    if device == "cpu":
        slots = min(largest, int(facts.total_experts * _SHARE_WITHOUT_GPU))
    if slots < largest:
        told = (
            "Without a GPU slots are host memory and win no speed, so a quarter of the "
            f"{facts.total_experts} experts is enough; up to {largest} would fit."
        )
        assumptions = (*assumptions, told)
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


def _where(device: str) -> str:
    return "host" if device == "cpu" else "device"


def _size(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB // 10 else f"{size / (1 << 20):.1f} MiB"
