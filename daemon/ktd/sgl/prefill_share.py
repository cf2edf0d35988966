"""Which experts of a long prefill the CPU computes while the others pass over the link.

Both work at the same time, so a layer is done soonest when both take equally long: with n of N
experts on the CPU, ``n * cpu = (N - n) * link``. What an expert costs the link is its bytes at the
measured rate; what it costs the CPU depends on the tokens, and is what earlier calls took.
"""

from __future__ import annotations

from collections.abc import Callable

# Of a new measurement, beside those before it.
_NEW = 0.5


class PrefillShare:
    """Learns what an expert costs the pool, for each size of a prefill, and divides by it.

    Args:
        expert_bytes: In host memory.
        link_bytes_per_second: Measured.
        spent: Gives the seconds that the pool's long calls have taken, and the bytes of experts
            that they read.
    """

    def __init__(
        self,
        expert_bytes: int,
        link_bytes_per_second: float,
        spent: Callable[[], tuple[float, int]],
    ) -> None:
        self._expert_bytes = expert_bytes
        self.link_seconds = expert_bytes / link_bytes_per_second
        self._spent = spent
        self._before = spent()
        self._size: int | None = None
        self._cpu_seconds: dict[int, float] = {}

    def begin(self, tokens: int) -> None:
        """A pass of so many tokens is about to be launched; the one before it may have ended.

        Two passes of different sizes that overlap are taken for one of the former size.
        """
        seconds, num_bytes = self._spent()
        took, read = seconds - self._before[0], num_bytes - self._before[1]
        if self._size is not None and read > 0:
            cost = took * self._expert_bytes / read
            known = self._cpu_seconds.get(self._size)
            self._cpu_seconds[self._size] = (
                cost if known is None else _NEW * cost + (1 - _NEW) * known
            )
        if read > 0 or self._size is None:
            self._before = seconds, num_bytes
            self._size = tokens.bit_length()

    def cpu_seconds(self, tokens: int) -> float:
        """What an expert costs the pool in a prefill of so many tokens.

        Where nobody knows yet: as the nearest size that was measured, and else four times the link,
        of which a pass is enough to learn the truth.
        """
        size = tokens.bit_length()
        if size in self._cpu_seconds:
            return self._cpu_seconds[size]
        if not self._cpu_seconds:
            return 4 * self.link_seconds
        nearest = min(self._cpu_seconds, key=lambda known: abs(known - size))
        return self._cpu_seconds[nearest] * 2.0 ** max(0, size - nearest)

    def experts(self, tokens: int, absent: int) -> int:
        """How many of a layer's ``absent`` experts, those without a slot, the CPU computes."""
        cpu = self.cpu_seconds(tokens)
        return int(absent * self.link_seconds / (self.link_seconds + cpu))
