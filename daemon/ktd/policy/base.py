"""What a policy is told, what it answers, and the protocol that every policy satisfies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Mapped: TypeAlias = NDArray[np.bool_]

# A policy is asked after at least so many tokens: a step of 64 streams, or a second of one.
DECISION_TOKENS = 64


@dataclass(frozen=True, slots=True, eq=False)
class Observation:
    """What was counted since the observation before.

    Attributes:
        decode: (token, expert) pairs ``[layers, experts]`` of decode.
        decode_tokens: Tokens that they are of.
        prefill: The same of prefill; None for none.
        prefill_tokens: Tokens that those are of.
        prefill_steps: Forward passes in which they were computed.
    """

    decode: NDArray[np.int64]
    decode_tokens: int
    prefill: NDArray[np.int64] | None = None
    prefill_tokens: int = 0
    prefill_steps: int = 0

    @property
    def tokens(self) -> int:
        """Tokens of both kinds."""
        return self.decode_tokens + self.prefill_tokens


class Choice(NamedTuple):
    """One exchange that a policy made or looked at.

    Attributes:
        layer: Position of the layer among the MoE layers.
        evict: Expert that leaves its slot; None: a free slot is filled.
        load: Expert that enters it.
        score_evict: Uses per token that are expected of ``evict``, averaged over the horizon.
        score_load: The same of ``load``.
        gain: Pairs that the exchange is expected to bring to the slots over the horizon.
        noise: Pairs that the gain must stand out by, as rates are only known from a sample.
        cost: Pairs that the copy costs.
        reason: Why it is not made, one sentence; empty when it is.
    """

    layer: int
    evict: int | None
    load: int
    score_evict: float
    score_load: float
    gain: float
    noise: float
    cost: float
    reason: str = ""


class Policy(Protocol):
    """Decides on exchanges; owns all that it has learned. Not thread-safe, never waits."""

    @property
    def name(self) -> str:
        """As ``--placement-policy`` knows it."""
        ...

    def observe(self, seen: Observation) -> None:
        """Learns."""
        ...

    def decide(self, mapped: Mapped, limit: int | None = None) -> Sequence[Choice]:
        """What to exchange now, at most ``limit`` experts, the most useful first.

        It counts as made from now on, unless it is :meth:`dropped`.

        Args:
            mapped: ``[layers, experts]``: what is in slots, as far as the policy may rely on it.
            limit: None: as many as pay.
        """
        ...

    def dropped(self) -> None:
        """What was decided last was not done."""
        ...

    def considered(self, mapped: Mapped, most: int) -> Sequence[Choice]:
        """The best exchanges now, each with the reason that speaks against it, or none."""
        ...

    def facts(self) -> Mapping[str, float]:
        """What its decisions rest on, for people."""
        ...


def applied(mapped: Mapped, choices: Sequence[Choice]) -> Mapped:
    """A copy of ``mapped`` after ``choices``."""
    after = mapped.copy()
    for choice in choices:
        if choice.evict is not None:
            after[choice.layer, choice.evict] = False
        after[choice.layer, choice.load] = True
    return after
