"""Statistics as immutable values: what was read from the ranks, and what a client is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ktd.rankfile import Kind

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

GPU, CPU = 0, 1


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


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Every counter of one engine at one moment.

    Tokens, steps and pairs are those of rank 0, as tensor-parallel ranks see the same tokens; bytes
    are summed over the ranks.

    Attributes:
        time: Unix seconds; ``start_time`` is that of the engine's rank 0.
        moe_layers: Model layer indices, in the order of ``counts``.
        counts: int64 ``[kind, layer, expert, tier]``, kinds prefill and decode
            (:class:`ktd.rankfile.Kind`), tiers GPU slot and CPU: (token, expert) pairs.
    """

    time: float
    start_time: float
    engine_id: str
    moe_layers: tuple[int, ...]
    num_experts: int
    counts: NDArray[np.int64]
    decode_steps: int
    prefill_steps: int
    decode_tokens: int
    prefill_tokens: int
    cpu_weight_bytes: int
    swap_bytes: int
    move_calls: int = 0
    move_call_seconds: float = 0.0
    ranks: tuple[RankSample, ...] = ()

    @property
    def prefill(self) -> NDArray[np.int64]:
        """Pairs of prefill ``[layer, expert, tier]``; a view."""
        found: NDArray[np.int64] = self.counts[Kind.PREFILL]
        return found

    @property
    def decode(self) -> NDArray[np.int64]:
        """Pairs of decode ``[layer, expert, tier]``; a view."""
        found: NDArray[np.int64] = self.counts[Kind.DECODE]
        return found

    @property
    def pairs(self) -> NDArray[np.int64]:
        """Pairs of both kinds ``[layer, expert, tier]``."""
        found: NDArray[np.int64] = self.counts.sum(axis=0)
        return found

    @property
    def gpu_pairs(self) -> int:
        """(token, expert) pairs computed in GPU slots."""
        return int(self.counts[..., GPU].sum())

    @property
    def cpu_pairs(self) -> int:
        """(token, expert) pairs computed on the CPU."""
        return int(self.counts[..., CPU].sum())

    @property
    def prefill_gpu_pairs(self) -> int:
        """Those of ``gpu_pairs`` that were for prefill."""
        return int(self.prefill[..., GPU].sum())

    @property
    def prefill_cpu_pairs(self) -> int:
        """Those of ``cpu_pairs`` that were for prefill."""
        return int(self.prefill[..., CPU].sum())


@dataclass(frozen=True, slots=True)
class LayerCounts:
    """Pairs of one model layer since the engine's start.

    ``experts`` names the experts that the others speak of; empty when they are all there. The
    counts of prefill are contained in ``gpu`` and ``cpu``; the rest is decode.
    """

    layer: int
    experts: tuple[int, ...]
    gpu: tuple[int, ...]
    cpu: tuple[int, ...]
    prefill_gpu: tuple[int, ...]
    prefill_cpu: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums since the engine's start; pairs of prefill are contained in the pairs of their tier.

    Attributes:
        move_calls: Control calls that moved experts, between two steps of rank 0's scheduler.
        move_call_seconds: What they took of its time.
    """

    decode_steps: int
    prefill_steps: int
    decode_tokens: int
    prefill_tokens: int
    gpu_pairs: int
    cpu_pairs: int
    prefill_gpu_pairs: int
    prefill_cpu_pairs: int
    cpu_weight_bytes: int
    swap_bytes: int
    move_calls: int = 0
    move_call_seconds: float = 0.0

    @property
    def gpu_hit_rate(self) -> float:
        """Share of pairs computed in GPU slots; 0 if nothing was counted."""
        return _share(self.gpu_pairs, self.cpu_pairs)

    @property
    def prefill_hit_rate(self) -> float:
        """The same for prefill alone."""
        return _share(self.prefill_gpu_pairs, self.prefill_cpu_pairs)

    @property
    def decode_hit_rate(self) -> float:
        """The same for decode alone."""
        return _share(
            self.gpu_pairs - self.prefill_gpu_pairs, self.cpu_pairs - self.prefill_cpu_pairs
        )


@dataclass(frozen=True, slots=True)
class Window:
    """Sums over the last ``length`` seconds; pairs of prefill are contained in those of a tier."""

    length: float
    decode_steps: int
    prefill_steps: int
    decode_tokens: int
    prefill_tokens: int
    gpu_pairs: int
    cpu_pairs: int
    prefill_gpu_pairs: int
    prefill_cpu_pairs: int

    @property
    def gpu_hit_rate(self) -> float:
        """Share of pairs computed in GPU slots; 0 if nothing was counted."""
        return _share(self.gpu_pairs, self.cpu_pairs)

    @property
    def prefill_hit_rate(self) -> float:
        """The same for prefill alone."""
        return _share(self.prefill_gpu_pairs, self.prefill_cpu_pairs)

    @property
    def decode_hit_rate(self) -> float:
        """The same for decode alone."""
        return _share(
            self.gpu_pairs - self.prefill_gpu_pairs, self.cpu_pairs - self.prefill_cpu_pairs
        )

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
