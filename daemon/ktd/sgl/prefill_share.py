"""How many experts of a layer the CPU computes in a long prefill, while others pass over the link.

The link copies layer after layer without a pause. The CPU's part of a layer begins when the layer
before it is complete and attention and the router have run, and the next layer waits for its
answer. With n of N experts on the CPU the link is busy for ``(N - n) * link + answer(n)``, and the
way that waits for the CPU takes ``other + n * cpu``; a layer is done when both are. What each of
them costs is what earlier passes took. Both differ from layer to layer and the longer one counts,
so a gain of a few per cent is none: the CPU gets nothing for it.
"""

from __future__ import annotations

import bisect
import math
from collections import Counter, deque
from dataclasses import dataclass
from statistics import median

from ktd.experts import _native

# Of a new measurement of the link, beside those before it.
_NEW = 0.5
# The CPU's cost is the middle one of so many: a disturbed pass is none of them.
_KEPT = 3
# Of a layer's time; less is not worth a pass whose CPU is late (docs/results/gpu-engine.md: 3 to 5
# per cent were to be gained at 8,192 tokens, and passes took 1.07 times as long).
_LEAST_GAIN = 0.1
# The CPU gets the experts that were chosen least, and more of them are chosen more each. So it gets
# at most so many times as many as were measured, and a cost that rises with them is allowed for.
_GROWTH = 1.5
# Before anything is measured the CPU gets a few experts, one of nine in passes of up to 1,152
# tokens and one of 32 in long ones, of which each costs more: they teach what they cost, and do
# not hold a pass up for long where that is much.
_FIRST, _FEW = 9, 32
_TOKENS = 128  # of a pass, for one more in that divisor
# A pass in which the CPU had nothing to do measures nothing of it. After so many it gets a few
# again, if by what is known they would cost at most so much of the time of the passes since.
_PROBE_AFTER = 8
_PROBE_COST = 0.02
# Sizes of passes that are learnt about apart: so many for each doubling of the tokens.
_SIZES = 4


@dataclass(frozen=True, slots=True)
class PassTimes:
    """A pass that has ended.

    Attributes:
        tokens: Of it.
        layers: That passed through the stream.
        experts: That the CPU had, of all layers together, chosen by a token or not.
        cpu_seconds: That it took for them.
        other_seconds: Of a layer, mean: from the CPU's last answer to the next layer's call.
        copied: Experts that passed over the link.
        copy_seconds: That it took for them and for what passed beside them.
    """

    tokens: int
    layers: int
    experts: int
    cpu_seconds: float
    other_seconds: float
    copied: int
    copy_seconds: float


@dataclass(frozen=True, slots=True)
class _Sample:
    """Of one pass: seconds of an expert and of a layer's other work, and experts of a layer."""

    cpu: float
    other: float
    experts: float


class PrefillShare:
    """Learns what passes of each size cost, and divides the next ones by it.

    Args:
        row: Bytes of one token's answer, as a part of an expert's bytes.
        num_experts: Of a layer.
        top_k: Of a token.
    """

    def __init__(self, row: float, *, num_experts: int, top_k: int) -> None:
        self._row = row
        self._num_experts = num_experts
        self._top_k = top_k
        self._link: float | None = None
        self._measured: dict[int, deque[_Sample]] = {}
        self._unused: Counter[int] = Counter()  # passes of a size in a row without a share

    @property
    def link_seconds(self) -> float:
        """Of an expert; 0 before the first pass."""
        return self._link or 0.0

    @property
    def knows_cpu(self) -> bool:
        """Whether a pass was measured of which the CPU had some."""
        return bool(self._measured)

    def learn(self, times: PassTimes) -> None:
        """A pass has ended."""
        if times.copied:
            # The answers passed over the link beside the copies.
            answers = times.layers * self._answer(times.tokens, times.experts / times.layers)
            link = times.copy_seconds / (times.copied + answers)
            self._link = link if self._link is None else self._link + _NEW * (link - self._link)
        size = _size(times.tokens)
        if times.experts == 0:
            self._unused[size] += 1
            return
        samples = self._measured.setdefault(size, deque(maxlen=_KEPT))
        if self._unused.pop(size, 0) >= _PROBE_AFTER:
            samples.clear()  # of a host that was
        of_layer = times.experts / times.layers
        samples.append(_Sample(times.cpu_seconds / times.experts, times.other_seconds, of_layer))

    def cost(self, tokens: int) -> tuple[float, float]:
        """Seconds of an expert on the CPU, and of a layer's other work on the way that waits.

        Of a size that was not measured, as of the nearest that was; with more tokens, more.

        Raises:
            ValueError: None was.
        """
        size = _size(tokens)
        nearest = self._nearest(size)
        samples, times = self._measured[nearest], 2.0 ** max(0.0, (size - nearest) / _SIZES)
        cpu = median(sample.cpu for sample in samples)
        return times * cpu, times * median(sample.other for sample in samples)

    def _nearest(self, size: int) -> int:
        return min(self._measured, key=lambda known: abs(known - size))

    def layer_seconds(self, tokens: int, absent: int, experts: int) -> float:
        """What a layer takes with so many of its ``absent`` experts on the CPU."""
        return max(self._ways(tokens, absent, experts))

    def experts(self, tokens: int, absent: int) -> int:
        """How many of a layer's ``absent`` experts, those without a slot, the CPU computes.

        None of a pass so short that the pool does not measure its calls.
        """
        if tokens < _native.LONG_CALL:
            return 0
        if self._link is None or not self.knows_cpu:
            return _few(absent, min(_FEW, max(_FIRST, tokens // _TOKENS)))

        def waits_longer(experts: int) -> bool:
            link, waiting = self._ways(tokens, absent, experts)
            return waiting >= link

        # The link's way is a concave function of the number and the other a straight line that
        # rises, so they cross once, and the shorter layer is beside the crossing, or at an end.
        crossing = bisect.bisect_left(range(1, absent + 1), x=True, key=waits_longer) + 1
        numbers = {0, crossing - 1, min(crossing, absent)}
        best = min(sorted(numbers), key=lambda number: self.layer_seconds(tokens, absent, number))
        most = (1 - _LEAST_GAIN) * self.layer_seconds(tokens, absent, 0)
        if self.layer_seconds(tokens, absent, best) > most:
            return self._probe(tokens, absent)
        return self._towards(best, tokens, absent)

    def _towards(self, best: int, tokens: int, absent: int) -> int:
        """How far the next pass goes: with more, which cost more each, it takes no longer."""
        known = median(s.experts for s in self._measured[self._nearest(_size(tokens))])
        cpu, other = self.cost(tokens)
        without = self.layer_seconds(tokens, absent, 0)
        for number in range(min(best, math.ceil(_GROWTH * known)), int(known), -1):
            if other + number * cpu * number / known <= without:
                return number
        return min(best, max(1, int(known)))

    def _probe(self, tokens: int, absent: int) -> int:
        """A few experts, to learn what they cost now, where that holds passes up for little."""
        unused, few = self._unused[_size(tokens)], _few(absent, _FEW)
        if unused < _PROBE_AFTER:
            return 0
        link, waiting = self._ways(tokens, absent, few)
        alone = self.layer_seconds(tokens, absent, 0)
        return few if link <= alone and waiting <= alone * (1 + _PROBE_COST * unused) else 0

    def _ways(self, tokens: int, absent: int, experts: int) -> tuple[float, float]:
        """Seconds of a layer on the link, and on the way that waits for the CPU."""
        if experts == 0:
            return self.link_seconds * absent, 0.0
        cpu, other = self.cost(tokens)
        link = self.link_seconds * (absent - experts + self._answer(tokens, experts))
        return link, other + experts * cpu

    def _answer(self, tokens: int, experts: float) -> float:
        """The CPU's answer for a layer, in experts: a row for each token that chose one of its."""
        return tokens * (1 - (1 - experts / self._num_experts) ** self._top_k) * self._row


def _few(absent: int, part: int) -> int:
    return -(-absent // part) if absent > 1 else 0  # something has to pass over the link


def _size(tokens: int) -> int:
    return round(_SIZES * math.log2(tokens))
