"""``random``: a fixed shuffle of all experts, for comparison."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from ktd.placement.strategies.base import Choice, Evidence
from ktd.placement.strategies.torch_random import randperm

if TYPE_CHECKING:
    from collections.abc import Sequence

_SEED = 42


@lru_cache(maxsize=1)
def _shuffle(length: int) -> Sequence[int]:
    # A model has one length, and shuffling the pairs of a large one takes 10 ms.
    return randperm(length, _SEED)


class Shuffled:
    """KTransformers' ``random``: the head of ``torch.randperm(layers * experts)``, seed 42.

    Pairs of layer and expert are numbered row by row, so layers get uneven shares.
    """

    name = "random"

    def initial(self, num_layers: int, num_experts: int, budget: int, evidence: Evidence) -> Choice:
        """See :class:`~ktd.placement.strategies.base.Strategy`."""
        del evidence
        chosen: list[list[int]] = [[] for _ in range(num_layers)]
        for index in _shuffle(num_layers * num_experts)[:budget]:
            layer, expert = divmod(index, num_experts)
            chosen[layer].append(expert)
        return Choice(tuple(tuple(sorted(experts)) for experts in chosen))

    def live(self, num_experts: int, slots: Sequence[int], evidence: Evidence) -> Choice:
        """Walks the same shuffle and takes an expert while its layer has a slot left.

        Under the counts that :meth:`initial` gave, this is what :meth:`initial` chose.
        """
        del evidence
        chosen: list[list[int]] = [[] for _ in slots]
        left = sum(slots)
        for index in _shuffle(len(slots) * num_experts):
            if not left:
                break
            layer, expert = divmod(index, num_experts)
            if len(chosen[layer]) < slots[layer]:
                chosen[layer].append(expert)
                left -= 1
        return Choice(tuple(tuple(sorted(experts)) for experts in chosen))
