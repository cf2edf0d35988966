"""Records what each forward pass routed where, in one rank, for as long as it is asked to.

Counts of a pass are the growth of the counters that are always on; only ``per_token`` looks at the
routing itself. A pass costs nothing while nothing is recorded.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

STAT, STAT_APPROX, PER_PASS, PER_TOKEN = "stat", "stat_approx", "per_pass", "per_token"
MODES = (STAT, STAT_APPROX, PER_PASS, PER_TOKEN)


class RecordingRefused(Exception):  # says what happened
    """There is nothing to stop or to write; one sentence."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a recording may hold; the oldest passes make room for new ones.

    Attributes:
        passes: Number of passes in mode ``stat``; -1: as many as come.
        bytes: Memory for passes in the other modes.
    """

    passes: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Tokens:
    """One pass of mode ``per_token``; lists are as long as the pass has tokens.

    Attributes:
        ids: int16 ``[MoE layers, tokens, top_k]``: chosen experts, -1 for none.
        metadata: The fields that SGLang's recorder keeps of its ``ForwardBatch``.
    """

    ids: torch.Tensor
    metadata: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward pass.

    Attributes:
        id: SGLang's number of the pass.
        counts: int32 ``[MoE layers, experts]``: (token, expert) pairs.
        in_slots: bool ``[MoE layers, experts]``: experts in slots during the pass, if wanted.
        tokens: In mode ``per_token``.
    """

    id: int
    counts: torch.Tensor
    in_slots: torch.Tensor | None
    tokens: Tokens | None

    @property
    def num_bytes(self) -> int:
        """Memory that it takes; Python's lists of token ids count as 36 bytes a number."""
        total = self.counts.nbytes
        if self.in_slots is not None:
            total += self.in_slots.nbytes
        if self.tokens is not None:
            total += self.tokens.ids.nbytes + 72 * self.tokens.ids.shape[1]
        return total


@dataclass(slots=True)
class Recorded:
    """What was recorded and has not been written.

    Attributes:
        passes: In their order; empty in mode ``stat_approx`` unless masks are recorded.
        dropped: Passes that made room for others.
        seen: Passes that ran, tokens likewise.
        totals: int64 ``[kinds, MoE layers, experts]``, in mode ``stat_approx``.
        session: Which start it belongs to.
    """

    session: int = 0
    passes: deque[Pass] = field(default_factory=deque)
    dropped: int = 0
    seen: int = 0
    tokens: int = 0
    num_bytes: int = 0
    totals: torch.Tensor | None = None


class Recorder:
    """The recorder of one rank; called by its scheduler's thread.

    Args:
        counters: int64 ``[kinds, MoE layers, experts, tiers]``, always counting.
        in_slots: Gives bool ``[MoE layers, experts]``: the experts in slots now.
    """

    def __init__(self, counters: torch.Tensor, in_slots: Callable[[], torch.Tensor]) -> None:
        self._counters = counters
        self._in_slots = in_slots
        self.recording = False
        self.mode = ""
        self.gpu_masks = False
        self.limits = Limits(0, 0)
        self._recorded = Recorded()
        self._before = counters
        self._ids: dict[int, torch.Tensor] = {}
        self._metadata: dict[str, Any] = {}
        # A dump that failed gives back what it took, from the thread that was to write it.
        self._lock = threading.Lock()

    @property
    def wants_ids(self) -> bool:
        """Whether :meth:`begin_pass` and :meth:`see` have to be called."""
        return self.recording and self.mode == PER_TOKEN

    def start(self, mode: str, limits: Limits, *, gpu_masks: bool) -> None:
        """Begins with the next pass; what was recorded before and not written is forgotten."""
        with self._lock:
            self.mode, self.limits, self.gpu_masks = mode, limits, gpu_masks
            self._recorded = Recorded(self._recorded.session + 1)
        self._ids.clear()
        self._before = self._counters.clone()
        self.recording = True

    def stop(self) -> None:
        """Keeps what was recorded until it is written.

        Raises:
            RecordingRefused: nothing is being recorded.
        """
        if not self.recording:
            raise RecordingRefused("nothing is being recorded")
        if self.mode == STAT_APPROX:
            self._add_totals()
        self.recording = False

    def begin_pass(self, metadata: dict[str, Any]) -> None:
        """A pass begins whose tokens are recorded; the fields that SGLang's recorder keeps."""
        self._metadata = metadata

    def see(self, position: int, ids: torch.Tensor) -> None:
        """One layer's routing ``[tokens, top_k]`` of the pass that runs."""
        self._ids[position] = ids.to(torch.int16)

    def end_pass(self, pass_id: int, tokens: int) -> None:
        """A pass of so many tokens has ended."""
        if not self.recording:
            return
        one: Pass | None = None
        if self.mode != STAT_APPROX or self.gpu_masks:
            counts = torch.zeros(0, dtype=torch.int32)
            if self.mode != STAT_APPROX:
                now = self._counters.clone()
                counts = (now - self._before).sum(dim=(0, 3), dtype=torch.int32)
                self._before = now
            one = Pass(
                id=pass_id,
                counts=counts,
                in_slots=self._in_slots() if self.gpu_masks else None,
                tokens=self._tokens() if self.mode == PER_TOKEN else None,
            )
        with self._lock:
            recorded = self._recorded
            recorded.seen += 1
            recorded.tokens += tokens
            if one is not None:
                recorded.passes.append(one)
                recorded.num_bytes += one.num_bytes
                self._make_room(recorded)

    def take(self) -> Recorded:
        """What was recorded, to be written; the recorder begins anew.

        Raises:
            RecordingRefused: there is nothing.
        """
        if self.recording and self.mode == STAT_APPROX:
            self._add_totals()
        with self._lock:
            taken = self._recorded
            if not taken.seen:
                raise RecordingRefused(
                    "no pass has run since recording began"
                    if self.recording
                    else "nothing has been recorded; start recording first"
                )
            self._recorded = Recorded(taken.session)
        return taken

    def give_back(self, taken: Recorded) -> None:
        """Writing failed: what was taken comes before what was recorded since."""
        with self._lock:
            recorded = self._recorded
            if recorded.session != taken.session:  # another recording has begun meanwhile
                return
            recorded.passes.extendleft(reversed(taken.passes))
            recorded.dropped += taken.dropped
            recorded.seen += taken.seen
            recorded.tokens += taken.tokens
            recorded.num_bytes += taken.num_bytes
            if taken.totals is not None:
                recorded.totals = _sum(recorded.totals, taken.totals)
            self._make_room(recorded)

    def report(self) -> dict[str, Any]:
        """The recorder's state, for JSON."""
        with self._lock:
            recorded = self._recorded
            return {
                "recording": self.recording,
                "mode": self.mode,
                "gpu_masks": self.gpu_masks,
                "passes": recorded.seen,
                "dropped_passes": recorded.dropped,
                "tokens": recorded.tokens,
                "bytes": recorded.num_bytes,
            }

    def _tokens(self) -> Tokens:
        found = self._metadata
        layers = self._counters.shape[1]
        # Rows of a layer that did not run, or rows that are only padding, hold -1.
        width = max((ids.shape[1] for ids in self._ids.values()), default=0)
        ids = torch.full((layers, len(found["input_ids"]), width), -1, dtype=torch.int16)
        for position, of_layer in self._ids.items():
            rows = min(len(of_layer), ids.shape[1])
            ids[position, :rows] = of_layer[:rows]
        self._ids.clear()
        return Tokens(ids, found)

    def _add_totals(self) -> None:
        now = self._counters.clone()
        counted = (now - self._before).sum(dim=3)
        self._before = now
        with self._lock:
            self._recorded.totals = _sum(self._recorded.totals, counted)

    def _make_room(self, recorded: Recorded) -> None:
        by_number = self.mode in (STAT, STAT_APPROX)
        limit = self.limits.passes if by_number else self.limits.bytes
        while limit >= 0 and (len(recorded.passes) if by_number else recorded.num_bytes) > limit:
            recorded.num_bytes -= recorded.passes.popleft().num_bytes
            recorded.dropped += 1


def _sum(one: torch.Tensor | None, other: torch.Tensor) -> torch.Tensor:
    return other if one is None else one + other


def as_list(values: Sequence[int] | torch.Tensor | None) -> list[int] | None:
    """A field of a ``ForwardBatch`` as plain numbers; None stays None."""
    if isinstance(values, torch.Tensor):
        plain: list[int] = values.tolist()
        return plain
    return None if values is None else list(values)
