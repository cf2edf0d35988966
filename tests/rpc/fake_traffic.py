"""Rank files as an engine under load would write them."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from ktd.rankfile import Kind, RankFileWriter, Word, path_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ktd.placement.model import Experts, ModelShape

_TOP_K = 2


class FakeTraffic:
    """One rank file and tokens that arrive in it, experts drawn with a skew of their own per layer.

    Args:
        experts: The experts in slots now, which decides the tier of each pair.
    """

    def __init__(
        self, runtime_dir: Path, shape: ModelShape, experts: Callable[[], Experts]
    ) -> None:
        self._shape = shape
        self._experts = experts
        self._random = random.Random(1)  # synthetic load
        self.writer = RankFileWriter(
            path_of(runtime_dir, 0),
            rank=0,
            num_layers=len(shape.moe_layers),
            num_experts=shape.num_experts,
        )
        self._counters = self.writer.counters.cast("Q")
        order = list(range(shape.num_experts))
        self._orders = [self._random.sample(order, len(order)) for _ in shape.moe_layers]
        self._weights = [1 / (rank + 1) for rank in order]

    def decode(self, tokens: int) -> None:
        """Steps of one token each."""
        self._count(tokens, Kind.DECODE)
        self.writer.words[Word.DECODE_STEPS] += tokens
        self.writer.words[Word.DECODE_TOKENS] += tokens

    def prefill(self, tokens: int) -> None:
        """One step of many tokens."""
        self._count(tokens, Kind.PREFILL)
        self.writer.words[Word.PREFILL_STEPS] += 1
        self.writer.words[Word.PREFILL_TOKENS] += tokens

    def close(self) -> None:
        self._counters.release()
        self.writer.close()

    def _count(self, tokens: int, kind: Kind) -> None:
        self.writer.beat()
        num_experts = self._shape.num_experts
        first = 2 * num_experts * len(self._orders) * kind
        for layer, (order, chosen) in enumerate(zip(self._orders, self._experts(), strict=True)):
            in_slots = set(chosen)
            draws = self._random.choices(order, self._weights, k=tokens * _TOP_K)
            for expert in draws:
                on_cpu = expert not in in_slots
                self._counters[first + 2 * (layer * num_experts + expert) + on_cpu] += 1
                if on_cpu:
                    self.writer.words[Word.CPU_WEIGHT_BYTES] += self._shape.expert_bytes
