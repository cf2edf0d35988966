"""How much a token of prefill counts beside a token of decode."""

from __future__ import annotations

import math
from collections import deque

_HALF_LIFE = 16384.0
# With less decode than this share of all tokens the workload is prefill, and there is no decode to
# drown: a request of 32,000 tokens that is answered by 200 still is one that waits for its decode.
_LEAST_DECODE = 1 / 256
# Decode has ended once it pauses for so many times the longest of its last pauses. However long
# prompts are, one pause in 33 is longer than the 32 before it; where lengths spread widely, it
# takes the margin as well for decode to keep its part.
_LAST_PAUSES = 32
_LONGER = 4.0
# Tokens of prefill, as of a prompt or two, that are no end.
_SHORT_PAUSE = 1024.0


class PrefillWeight:
    """Prefill counts for no more than decode does, and in full where there is hardly any decode.

    A prompt brings hundreds of tokens at once, of which each reads its experts for many others too;
    in decode a step waits for each expert. So decode's part of what is learned is at least half,
    until it has ended: the share of decode fades slowly, and by that alone a few short answers
    would keep a policy from learning anything of the next 30,000 tokens of prompts.

    Attributes:
        weight: Of a token of prefill, from 0 to 1.
    """

    def __init__(self) -> None:
        self.weight = 1.0
        self._decode = 0.0
        self._prefill = 0.0
        # Tokens of prefill since there was decode, and those that it came back after.
        self._pause = 0.0
        self._pauses: deque[float] = deque(maxlen=_LAST_PAUSES)

    def update(self, decode_tokens: float, prefill_tokens: float) -> float:
        """The weight after so many more tokens."""
        kept = math.exp2(-(decode_tokens + prefill_tokens) / _HALF_LIFE)
        self._decode *= kept
        self._prefill = self._prefill * kept + prefill_tokens
        ended = self._ended() if decode_tokens <= 0 else 0.0
        self._pause += prefill_tokens
        if decode_tokens > 0:
            # After which hardly any decode was left, that was an end, or the beginning.
            if self._pause > 0 and self._decode >= _LEAST_DECODE * self._prefill:
                # One that was an end makes the next no more usual than a little longer prompts do.
                self._pauses.append(min(self._pause, self._usual()))
            self._pause = 0.0
        self._decode += decode_tokens
        if self._prefill <= 0:
            self.weight = 1.0
        else:
            ratio = self._decode / self._prefill
            self.weight = min(1.0, max(ratio, 1.0 - ratio / _LEAST_DECODE, ended))
        return self.weight

    def _ended(self) -> float:
        """How far decode is taken to have ended: in full after a pause of twice what may be usual.

        By the pause so far, without the tokens that come now: one long chunk says nothing.
        """
        return self._pause / self._usual() - 1.0

    def _usual(self) -> float:
        """Tokens of a pause that decode may come back after as ever."""
        return max(_SHORT_PAUSE, _LONGER * max(self._pauses, default=0.0))
