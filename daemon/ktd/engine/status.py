"""What is known about the engine, as one immutable value; mirrors ``ktd.v1.EngineStatus``."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum


class EnginePhase(IntEnum):
    """Where the engine is in its life; the numbers are those of ``ktd.v1.EnginePhase``."""

    STOPPED = 1
    STARTING = 2
    LOADING = 3
    WARMING = 4
    READY = 5
    DRAINING = 6
    STOPPING = 7
    BACKOFF = 8
    FAILED = 9

    @property
    def serving(self) -> bool:
        """Whether requests are accepted."""
        return self is EnginePhase.READY


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """Expert bytes in the host store so far, over all ranks."""

    bytes_done: int = 0
    bytes_total: int = 0


@dataclass(frozen=True, slots=True)
class Versions:
    """Versions in use; ``sglang`` and ``torch`` are empty until the engine has said hello."""

    ktd: str = ""
    sglang: str = ""
    torch: str = ""


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """Facts of the model that an operator sees; formats are for example ``"bf16"``."""

    path: str = ""
    served_name: str = ""
    architecture: str = ""
    expert_format: str = ""
    cpu_expert_format: str = ""
    num_layers: int = 0
    num_moe_layers: int = 0
    num_experts: int = 0
    experts_per_token: int = 0
    hidden_size: int = 0
    expert_intermediate_size: int = 0


@dataclass(frozen=True, slots=True)
class MemorySummary:
    """Bytes over all ranks, except ``expert_bytes`` (one expert, whole); counts over all layers.

    ``host_memory`` is ``"copy"`` or ``"mmap"``, where experts are used from the page cache;
    ``host_copied_bytes``: what of them is in memory of the engine's own, once it is known.
    """

    host_store_bytes: int = 0
    slot_bytes: int = 0
    expert_bytes: int = 0
    total_slots: int = 0
    total_experts: int = 0
    host_memory: str = ""
    host_copied_bytes: int = 0


@dataclass(frozen=True, slots=True)
class RankSummary:
    """One SGLang scheduler process.

    Attributes:
        device: ``"cpu"`` or ``"cuda:0"``.
        prefill_graphs: Steps of prefill are captured, not launched layer by layer.
        prefill_threshold: Tokens from which experts stream to the GPU; 0: never.
        prefill_buffer_bytes: What they stream through.
    """

    rank: int
    pid: int
    isa: str
    threads: int
    moe_layers_hooked: int
    device: str
    prefill_graphs: bool = False
    prefill_threshold: int = 0
    prefill_buffer_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Condition:
    """Something an operator should know; ``time`` is in Unix seconds."""

    reason: str
    message: str
    time: float


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """The engine at one moment; times are Unix seconds.

    Attributes:
        message: One sentence for people: what is happening, or what is wrong and what to do.
        phase_time: When ``phase`` was entered.
        progress: Only while loading.
        restarts: How often the engine was started again after ending unexpectedly.
        next_start_time: Only in ``BACKOFF``.
        placement_revision: Filled in by the RPC layer when 0.
        http_address: For example ``"http://127.0.0.1:30000"``.
        engine_id: Changes with every start; empty before the first.
    """

    phase: EnginePhase = EnginePhase.STOPPED
    message: str = ""
    phase_time: float = 0.0
    progress: LoadProgress | None = None
    versions: Versions = field(default_factory=Versions)
    model: ModelSummary | None = None
    memory: MemorySummary | None = None
    ranks: tuple[RankSummary, ...] = ()
    restarts: int = 0
    next_start_time: float | None = None
    requests_in_flight: int = 0
    conditions: tuple[Condition, ...] = ()
    placement_revision: int = 0
    http_address: str = ""
    engine_id: str = ""
    name: str = "engines/default"
