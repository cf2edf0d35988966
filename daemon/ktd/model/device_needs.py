"""What an engine takes of the GPUs' memory, over all ranks, by what for; and whether it fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ktd.errors import DoesNotFit
from ktd.model.memory import GIB, size_text
from ktd.model.sglang_choice import kept_free

if TYPE_CHECKING:
    from ktd.model.demand import Demand
    from ktd.model.facts import ModelFacts

# The driver's tables for a GiB of registered host memory: ktd.cuda.host_memory has the same figure.
BYTES_PER_REGISTERED_GIB = 2 << 20
# Seen on an H100: the CUDA context, NCCL and what SGLang sets up; decode graphs of 48 layers.
_CONTEXT = 3 * GIB // 2
_GRAPHS_OF_A_LAYER = GIB // 10 // 48
_BF16 = 2
# Of one expert at once: its host rows, as SGLang pads them, and two that lie between; and for each
# four bits of it the place, in 32, that they come from. While that is found out it is up to 45,
# when the first layer of many is there.
_SCRATCH_COPIES = 4 + 8
_BUFFERS = 2
# Of a layer's experts; while some move, more are in no slot than have none for good.
_LEAST_PIECE = 16
# Rows of a step beyond a chunk, and bytes of an id: ktd.sgl.cuda_side has the same figures.
_MIXED_ROWS = 1024
_ID_BYTES = 2
# What would free less than this part of what is missing is no advice.
_WORTH_NAMING = 100
# Rows [tokens, hidden] that live at once beside the experts': residual, attention's and the like.
_OTHER_ROWS = 8
# Most rows that logits are computed for in one step, each in bf16 and in float32.
_LOGIT_ROWS = 256
_LOGIT_BYTES = 6


@dataclass(frozen=True, slots=True)
class DeviceNeeds:
    """Bytes of device memory, by what for.

    Attributes:
        others: Weights that are not experts.
        registered: For host memory that GPUs read by themselves.
        stream: What long prefills stream through.
        scratch: What experts are repacked in on their way into slots.
        routing: For the experts that a step's tokens have chosen, where recordings find them.
        working: For activations, and what SGLang keeps free beside them.
        context: Of CUDA and SGLang, before anything is loaded.
    """

    others: int
    slots: int
    registered: int
    stream: int
    scratch: int
    routing: int
    kv_cache: int
    working: int
    context: int

    @property
    def total(self) -> int:
        """Of all."""
        return self.beside_slots + self.slots

    @property
    def beside_slots(self) -> int:
        """Of all but the slots."""
        kept = self.others + self.registered + self.stream + self.scratch + self.routing
        return kept + self.kv_cache + self.working + self.context

    def sum_text(self, facts: ModelFacts, demand: Demand, *, slots: bool = True) -> str:
        """The sum for people, with the slots or without."""
        host = size_text(facts.registered_bytes)
        parts = (
            (self.others, "weights that are not experts"),
            (self.slots if slots else 0, "expert slots"),
            (self.registered, f"for {host} of registered host memory"),
            (self.stream, "that long prefills stream through"),
            (self.scratch, "that experts are repacked in"),
            (self.routing, "for the routing of a step"),
            (self.kv_cache, f"KV cache of {demand.kv_tokens} tokens"),
            (self.working, f"kept free for steps of {demand.chunk} tokens"),
            (self.context, "CUDA and SGLang themselves"),
        )
        named = [f"{size_text(size)} {what}" for size, what in parts if size]
        return f"{' + '.join(named)} = {size_text(self.total if slots else self.beside_slots)}"


def device_needs(facts: ModelFacts, demand: Demand, *, slots: int, free: int) -> DeviceNeeds:
    """What an engine with ``slots`` expert slots takes.

    Args:
        facts: The model.
        demand: What it is started for.
        slots: Over all layers.
        free: Bytes that are free before it starts, over all GPUs: SGLang keeps a share of them.
    """
    return DeviceNeeds(
        others=facts.other_bytes,
        slots=slots * facts.expert_bytes,
        registered=facts.registered_bytes * BYTES_PER_REGISTERED_GIB // GIB,
        stream=_stream_bytes(facts, demand, slots),
        scratch=_SCRATCH_COPIES * facts.expert_bytes if demand.repacks else 0,
        routing=_routing_bytes(facts, demand),
        kv_cache=facts.kv_cache.bytes_for(
            demand.kv_tokens, demand.ranks, value_bytes=demand.kv_value_bytes
        ),
        working=max(
            activation_bytes(facts, demand) + graph_bytes(facts, demand), _kept(demand, free)
        ),
        context=demand.ranks * _CONTEXT,
    )


def slots_that_fit(facts: ModelFacts, demand: Demand, free: int) -> tuple[int, int]:
    """The most slots over all layers, and the room in bytes that they are in, at least 0."""
    return most_slots(
        facts, lambda slots: free - device_needs(facts, demand, slots=slots, free=free).beside_slots
    )


def most_slots(facts: ModelFacts, room_of: Callable[[int], int]) -> tuple[int, int]:
    """The most slots over all layers that are in the room they leave, and that room.

    Args:
        facts: The model.
        room_of: Bytes for slots beside all else that an engine with so many takes; the same for all
            that give each layer as many, but for a remainder.
    """
    layers, size = len(facts.moe_layers), facts.expert_bytes

    def fits(slots: int) -> bool:
        return room_of(slots) >= slots * size

    for of_each in range(facts.num_experts, -1, -1):
        slots = of_each * layers
        # One fewer may need two more in the buffer, and a ratio is rounded down.
        if fits(slots) and (of_each in (0, facts.num_experts) or fits(slots - 1)):
            room = room_of(slots)
            return min(slots + layers - 1, facts.total_experts, room // size), room
    return 0, max(0, room_of(0))


def ratio_of(slots: int, total: int) -> float:
    """The share of experts, in steps of 1 %, that gives at most ``slots`` of them one."""
    return slots * 100 // total / 100


def check_device_fits(facts: ModelFacts, demand: Demand, *, slots: int, free: int) -> None:
    """Refuses what cannot fit; nothing is refused where nobody knows what is free.

    Raises:
        DoesNotFit: with the sum, a ratio that fits, and what other options would free.
    """
    if not free:
        return
    needs = device_needs(facts, demand, slots=slots, free=free)
    if needs.total <= free:
        return
    where = f" on {demand.ranks} GPUs" if demand.ranks > 1 else ""
    hints = "; ".join(_hints(facts, demand, slots, free))
    raise DoesNotFit(
        f"The model needs {needs.sum_text(facts, demand)} of device memory{where}, and "
        f"{size_text(free)} are free: {hints}."
    )


def _hints(facts: ModelFacts, demand: Demand, slots: int, free: int) -> list[str]:
    none = device_needs(facts, demand, slots=0, free=free)
    most, _ = slots_that_fit(facts, demand, free)
    if none.total <= free or most:
        ratio = ratio_of(most, facts.total_experts)
        hints = [f"--kt-gpu-experts-ratio {ratio:g} fits"]
    else:
        without = "" if not slots else f", as 0 takes {size_text(none.total)}"
        hints = [f"no --kt-gpu-experts-ratio fits{without}"]
    now = device_needs(facts, demand, slots=slots, free=free).total
    for flag, field in (
        ("--chunked-prefill-size", "chunk"),
        ("--max-total-tokens", "kv_tokens"),
    ):
        half = getattr(demand, field) // 2
        less = replace(demand, **{field: half})
        freed = now - device_needs(facts, less, slots=slots, free=free).total
        if freed * _WORTH_NAMING > now - free:
            hints.append(f"{flag} {half} frees {size_text(freed)}")
    return hints


def activation_bytes(facts: ModelFacts, demand: Demand) -> int:
    """Of one layer and the head at the largest step.

    SGLang's fused experts have three buffers, whose memory torch keeps: gate and up, their product,
    and every pair's output. Ranks share an expert's width; all else each has whole.
    """
    pairs = demand.chunk * facts.experts_per_token
    width, hidden = facts.expert_intermediate_size, facts.hidden_size
    experts = pairs * (3 * width + demand.ranks * hidden) * _BF16
    others = demand.ranks * demand.chunk * _OTHER_ROWS * hidden * _BF16
    logits = demand.ranks * _LOGIT_ROWS * facts.vocab_size * _LOGIT_BYTES
    return experts + others + logits


def graph_bytes(facts: ModelFacts, demand: Demand) -> int:
    """Of captured decode graphs."""
    return 0 if demand.graph_rows == 0 else demand.ranks * facts.num_layers * _GRAPHS_OF_A_LAYER


def _stream_bytes(facts: ModelFacts, demand: Demand, slots: int) -> int:
    """Two halves on each rank, of whole experts, as ``ktd.sgl.prefill_stream`` reserves them.

    Where experts are repacked, host memory's, and room for those of one half as slots have them.
    Zero points of symmetric GPTQ are in neither: one expert more may fit than is reckoned here.
    """
    if not demand.buffer_bytes or (slots == facts.total_experts and not demand.every_layer_streams):
        return 0
    expert_bytes = _BUFFERS * facts.expert_bytes
    if demand.repacks:
        expert_bytes = _BUFFERS * facts.cpu_expert_bytes + facts.expert_bytes
    expert_bytes //= demand.ranks
    fitting = max(1, demand.buffer_bytes // expert_bytes)
    rows = min(piece_experts(facts, slots, whole=demand.every_layer_streams), fitting)
    return demand.ranks * rows * expert_bytes


def piece_experts(facts: ModelFacts, slots: int, *, whole: bool) -> int:
    """Experts of a layer that are streamed at once, if the buffer's budget has room for them.

    As many as a layer has in no slot, the mean of all. One that misses more, as slots are spread
    otherwise, or empty, or experts move, comes in several pieces.

    Args:
        facts: The model.
        slots: Over all layers.
        whole: All of a layer's, as any of them may be in no slot at any time.
    """
    if whole:
        return facts.num_experts
    absent = facts.num_experts - slots // len(facts.moe_layers)
    return max(absent, -(-facts.num_experts // _LEAST_PIECE))


def _routing_bytes(facts: ModelFacts, demand: Demand) -> int:
    rows = demand.chunk + _MIXED_ROWS
    return demand.ranks * len(facts.moe_layers) * rows * facts.experts_per_token * _ID_BYTES


def _kept(demand: Demand, free: int) -> int:
    """What SGLang's bound of weights and KV cache leaves of the memory that is free at first."""
    if demand.mem_fraction is not None:
        return int((1 - demand.mem_fraction) * free)
    kept = kept_free(
        demand.gpu_bytes, chunk=demand.chunk, ranks=demand.ranks, graph_rows=demand.graph_rows
    )
    if not demand.gpu_bytes:
        return kept * demand.ranks
    return int(kept / demand.gpu_bytes * free)
