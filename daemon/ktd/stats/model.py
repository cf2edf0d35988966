"""Statistics as immutable values: what was read from the ranks, and what a client is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class RankSample:
    """One rank at one moment.

    Attributes:
        heartbeat_ns: CLOCK_MONOTONIC nanoseconds of its scheduler's last sign of life.
        in_step: Whether it is in a forward pass, so that a missing heartbeat means nothing.
        error: Its error word; 0 is none.
    """

    rank: int
    pid: int
    heartbeat_ns: int
    in_step: bool
    error: int
    loaded_bytes: int
    total_bytes: int
    slot_bytes: int


@dataclass(frozen=True, slots=True)
class Sample:
    """Every counter of one engine at one moment.

    Tokens, steps and pairs are those of rank 0, as tensor-parallel ranks see the same tokens; bytes
    are summed over the ranks.

    Attributes:
        time: Unix seconds; ``start_time`` is that of the engine's rank 0.
        moe_layers: Model layer indices, in the order of ``counters``.
        counters: Flat ``[layer, expert, tier]``, tiers GPU slot and CPU: (token, expert) pairs.
    """

    time: float
    start_time: float
    engine_id: str
    moe_layers: tuple[int, ...]
    num_experts: int
    counters: Sequence[int]
    decode_steps: int
    prefill_steps: int
    decode_tokens: int
    prefill_tokens: int
    cpu_weight_bytes: int
    swap_bytes: int
    ranks: tuple[RankSample, ...] = ()

    def rows(self) -> list[Sequence[int]]:
        """The counters of each layer: ``[expert, tier]``, flat."""
        width = 2 * self.num_experts
        return [
            self.counters[start : start + width]
            for start in range(0, len(self.moe_layers) * width, width)
        ]

    @property
    def gpu_pairs(self) -> int:
        """(token, expert) pairs computed in GPU slots."""
        return sum(self.counters[::2])

    @property
    def cpu_pairs(self) -> int:
        """(token, expert) pairs computed on the CPU."""
        return sum(self.counters[1::2])


@dataclass(frozen=True, slots=True)
class LayerCounts:
    """Pairs of one model layer since the engine's start.

    ``experts`` names the experts that ``gpu`` and ``cpu`` speak of; empty when they are all there.
    """

    layer: int
    experts: tuple[int, ...]
    gpu: tuple[int, ...]
    cpu: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums since the engine's start."""

    decode_steps: int
    prefill_steps: int
    decode_tokens: int
    prefill_tokens: int
    gpu_pairs: int
    cpu_pairs: int
    cpu_weight_bytes: int
    swap_bytes: int

    @property
    def gpu_hit_rate(self) -> float:
        """Share of pairs computed in GPU slots; 0 if nothing was counted."""
        return _share(self.gpu_pairs, self.cpu_pairs)


@dataclass(frozen=True, slots=True)
class Window:
    """Sums over the last ``length`` seconds."""

    length: float
    decode_steps: int
    decode_tokens: int
    prefill_tokens: int
    gpu_pairs: int
    cpu_pairs: int

    @property
    def gpu_hit_rate(self) -> float:
        """Share of pairs computed in GPU slots; 0 if nothing was counted."""
        return _share(self.gpu_pairs, self.cpu_pairs)

    @property
    def decode_tokens_per_second(self) -> float:
        """Over the whole window, idle times included."""
        return self.decode_tokens / self.length if self.length > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What one client is told at one moment.

    Attributes:
        time: Unix seconds.
        sequence: Counts from 1 on each stream.
        full: Whether ``layers`` holds everything, or only experts whose counts changed.
        dropped: Samples that this stream skipped since it began.
    """

    time: float
    sequence: int
    full: bool
    dropped: int
    engine_id: str
    layers: tuple[LayerCounts, ...]
    totals: Totals
    window: Window


def _share(gpu: int, cpu: int) -> float:
    return gpu / (gpu + cpu) if gpu + cpu else 0.0
