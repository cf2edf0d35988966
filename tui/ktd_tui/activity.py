"""What each expert did: counts since the engine's start, and heat that fades.

:class:`ActivityBoard` is the one owner of the mutable counts; it turns the statistics stream
(a full snapshot, then deltas with absolute counts) into immutable :class:`Activity` values.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from ktd.client import StatsSnapshot

_HALF_LIFE = 10.0  # seconds after which an expert's recent heat counts half


@dataclass(frozen=True, slots=True)
class LayerActivity:
    """One layer; lists are indexed by expert."""

    layer: int
    gpu: tuple[int, ...]
    cpu: tuple[int, ...]
    recent: tuple[float, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """(token, expert) pairs since the engine's start on both sides."""
        return tuple(g + c for g, c in zip(self.gpu, self.cpu, strict=True))


@dataclass(frozen=True, slots=True)
class Activity:
    """All layers at one moment, and the numbers of the stream's last window.

    Attributes:
        tokens_per_second: Decode speed in the window.
        window_hit_rate: Share of pairs computed in slots in the window; None if it had none.
        total_hit_rate: The same since the engine's start; 0.0 if nothing was counted.
        dropped: Samples that this client was too slow for.
    """

    layers: tuple[LayerActivity, ...] = ()
    tokens_per_second: float = 0.0
    window_hit_rate: float | None = None
    total_hit_rate: float = 0.0
    decode_tokens: int = 0
    prefill_tokens: int = 0
    placement_revision: int = 0
    engine_id: str = ""
    dropped: int = 0


@dataclass(slots=True)
class _Row:
    gpu: list[int]
    cpu: list[int]
    recent: list[float]


class ActivityBoard:
    """Accumulates one statistics stream."""

    def __init__(self) -> None:
        self._rows: dict[int, _Row] = {}
        self._engine_id = ""
        self._updated = time.monotonic()

    def update(self, snapshot: StatsSnapshot) -> Activity:
        """Takes in one message of the stream and returns what is now known."""
        if snapshot.full or snapshot.engine_id != self._engine_id:
            self._rows.clear()
            self._engine_id = snapshot.engine_id
        self._fade()
        for layer in snapshot.layers:
            self._take(layer.layer, list(layer.experts), list(layer.gpu), list(layer.cpu))
        window, totals = snapshot.window, snapshot.totals
        pairs = window.gpu_pairs + window.cpu_pairs
        return Activity(
            layers=tuple(
                LayerActivity(layer, tuple(row.gpu), tuple(row.cpu), tuple(row.recent))
                for layer, row in sorted(self._rows.items())
            ),
            tokens_per_second=window.decode_tokens_per_second,
            window_hit_rate=window.gpu_hit_rate if pairs else None,
            total_hit_rate=totals.gpu_hit_rate,
            decode_tokens=totals.decode_tokens,
            prefill_tokens=totals.prefill_tokens,
            placement_revision=snapshot.placement_revision,
            engine_id=snapshot.engine_id,
            dropped=snapshot.dropped,
        )

    def _fade(self) -> None:
        now = time.monotonic()
        factor = 0.5 ** ((now - self._updated) / _HALF_LIFE)
        self._updated = now
        for row in self._rows.values():
            row.recent = [heat * factor for heat in row.recent]

    def _take(self, layer: int, experts: list[int], gpu: list[int], cpu: list[int]) -> None:
        row = self._rows.get(layer)
        if row is None:
            # A stream's first message tells the past, not what is going on now.
            self._rows[layer] = _Row(gpu, cpu, [0.0] * len(gpu))
            return
        for expert, on_gpu, on_cpu in zip(experts or range(len(gpu)), gpu, cpu, strict=True):
            row.recent[expert] += max(0, on_gpu + on_cpu - row.gpu[expert] - row.cpu[expert])
            row.gpu[expert], row.cpu[expert] = on_gpu, on_cpu
