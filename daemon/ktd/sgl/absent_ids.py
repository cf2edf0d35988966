"""Tries whether SGLang's runner leaves out the pairs that no slot computes, which have the id -1.

Tests show that it does for each format, with the releases of SGLang that ktd has run on GPUs with
(tests/sgl/test_gpu_layer.py, test_gpu_repacked.py). With another release each layer tries it on its
own GPU before its first step: a runner that takes -1 for an expert gives wrong answers, not errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version as distribution_version
from typing import Any, TypeAlias

import torch

from ktd.sgl.dispatch_rows import rows_like
from ktd.sgl.expert_layer import EMPTY, ExpertLayer
from ktd.version import TRIED_ON_GPUS, untried_on_gpus

# Kernels and their configurations depend on how many rows there are: one stream that decodes,
# several, and prompts.
ROWS = (1, 8, 64, 512)
# Of what an expert gives. Runners may add in any order, which moves a bf16 sum by 2^-8; a pair that
# was taken for an expert's is as large as what an expert gives.
_TOLERANCE = 0.05
# An expert whose weights are zeros says nothing.
_EXPERTS = 4

# Dispatch output, ids int32 [T, K] and weights float32 [T, K] to bf16 [T, H].
Compute: TypeAlias = Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]


def release_to_try() -> str:
    """The installed release of SGLang if its runners are to be tried; else empty."""
    release = distribution_version("sglang")
    return release if untried_on_gpus(release) else ""


@dataclass(frozen=True, slots=True)
class Sizes:
    """The largest numbers, without sign, of one trial.

    Attributes:
        expert: What one expert gives; 0 if none was there.
        absent: What pairs without an expert give when no pair has one.
        beside: What they add to one that has.
    """

    expert: float
    absent: float
    beside: float

    @property
    def right(self) -> bool:
        """Whether they give nothing; false where a number is none."""
        most = _TOLERANCE * self.expert
        return self.absent <= most and self.beside <= most


class Trials:
    """What one layer has still to try: its slots, and the pieces that stream through its rank.

    Args:
        release: Of SGLang.
        layer: Its slots.
        refuse: Makes the exception that ends the engine, of a sentence.
        slots: Whether pairs without a slot meet its slots' runner.
        pieces: Whether it streams.
    """

    def __init__(
        self,
        release: str,
        layer: ExpertLayer,
        refuse: Callable[[str], Exception],
        *,
        slots: bool,
        pieces: bool,
    ) -> None:
        self._release = release
        self._layer = layer
        self._refuse = refuse
        self.slots = slots
        self.pieces = pieces

    def try_slots(self, compute: Compute, dispatch_output: Any) -> None:
        """Before a step that no graph captures; again before the next as long as none is filled."""
        if len(dispatch_output.hidden_states):
            filled = [slot for slot, of in enumerate(self._layer.mapped()) if of != EMPTY]
            self._try(compute, dispatch_output, filled)
            self.slots = not filled

    def try_piece(self, compute: Compute, dispatch_output: Any, experts: int) -> None:
        """With the first piece of the first long prompt, of so many experts."""
        self._try(compute, dispatch_output, range(experts))
        self.pieces = False

    def _try(self, compute: Compute, dispatch_output: Any, filled: Sequence[int]) -> None:
        for rows in ROWS:
            found = trial(compute, rows_like(dispatch_output, rows), filled)
            if not found.right:
                raise self._refuse(
                    f"SGLang {self._release} gives up to {max(found.absent, found.beside):.3g} on "
                    f"this GPU, with {rows} rows, for pairs whose expert has no slot, where an "
                    f"expert gives {found.expert:.3g}, so answers would be wrong; install "
                    f"sglang=={TRIED_ON_GPUS[-1]}, or start with --device cpu"
                )


def trial(compute: Compute, dispatch_output: Any, filled: Sequence[int]) -> Sizes:
    """Runs a layer's slots with an expert alone, with one among absent pairs, and with none.

    In this order: memory that a kernel should have written has something in it by then.

    Args:
        compute: The layer's slots.
        dispatch_output: ``[T, H]``, of which the numbers are not used.
        filled: Slots that hold an expert.
    """
    hidden = dispatch_output.hidden_states
    # Numbers of its own: the model's may be padding, and torch's generator is the sampler's.
    random = torch.Generator(device=hidden.device).manual_seed(0)
    tokens = torch.randn(
        hidden.shape, generator=random, device=hidden.device, dtype=torch.float32
    ).to(hidden.dtype)
    rows = dispatch_output._replace(hidden_states=tokens)
    shape = dispatch_output.topk_output.topk_ids.shape
    ones = torch.ones(shape, dtype=torch.float32, device=hidden.device)
    absent = torch.full(shape, EMPTY, dtype=torch.int32, device=hidden.device)
    # Each row has its expert in another column.
    column = torch.arange(shape[0], device=hidden.device).unsqueeze(1) % shape[1]
    there = torch.zeros_like(ones).scatter_(1, column, 1.0)
    expert = beside = 0.0
    for slot in filled[:_EXPERTS]:
        alone = compute(rows, torch.full_like(absent, slot), there).float()
        size = _largest(alone)
        if size and math.isfinite(size):
            among = torch.where(there > 0, slot, absent).int()
            expert, beside = size, _largest(compute(rows, among, ones).float() - alone)
            break
    return Sizes(expert, _largest(compute(rows, absent, ones)), beside)


def fill_empty(layer: ExpertLayer) -> None:
    """Gives empty slots what a filled one has, before there are steps.

    A runner that takes -1 for the last of them would read zeros there, and give nothing.
    """
    mapped = layer.mapped()
    filled = next((slot for slot, of in enumerate(mapped) if of != EMPTY), None)
    if filled is None:
        return
    for slot, of in enumerate(mapped):
        if of == EMPTY:
            for tensor in layer.slots.values():
                tensor[slot].copy_(tensor[filled])


def _largest(values: torch.Tensor) -> float:
    return float(values.abs().max())
