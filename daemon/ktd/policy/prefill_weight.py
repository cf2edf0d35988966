"""How much a token of prefill counts beside a token of decode."""

from __future__ import annotations

import math

_HALF_LIFE = 16384.0
# With less decode than this share of all tokens the workload is prefill, and there is no decode to
# drown: a request of 32,000 tokens that is answered by 200 still is one that waits for its decode.
_LEAST_DECODE = 1 / 256


class PrefillWeight:
    """Prefill counts for no more than decode does, and in full where there is hardly any decode.

    A prompt brings hundreds of tokens at once, of which each reads its experts for many others too;
    in decode a step waits for each expert. So decode's part of what is learned is at least half.

    Attributes:
        weight: Of a token of prefill, from 0 to 1.
    """

    def __init__(self) -> None:
        self.weight = 1.0
        self._decode = 0.0
        self._prefill = 0.0

    def update(self, decode_tokens: float, prefill_tokens: float) -> float:
        """The weight after so many more tokens."""
        kept = math.exp2(-(decode_tokens + prefill_tokens) / _HALF_LIFE)
        self._decode = self._decode * kept + decode_tokens
        self._prefill = self._prefill * kept + prefill_tokens
        if self._prefill <= 0:
            self.weight = 1.0
        else:
            ratio = self._decode / self._prefill
            self.weight = min(1.0, max(ratio, 1.0 - ratio / _LEAST_DECODE))
        return self.weight
