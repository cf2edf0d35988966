"""What the pools of an engine's ranks read from memory, from the calls in their rank files.

Tensor-parallel ranks compute every layer at the same time, each its shard, and wait for each other
behind it. So their calls belong together one by one, and a layer's experts have been read when the
later of the two ends.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ktd.rankfile import PoolCall, RankFileReader

_SECOND = 1e9
_LOOKS, _LOOK_SECONDS = 150, 0.2


@dataclass(frozen=True, slots=True)
class PoolRate:
    """Of the calls of a stretch of time.

    Attributes:
        calls: Of each rank.
        num_bytes: Of experts' weights, all ranks together.
        working: Seconds in which any rank's pool worked: a rank that begins later than another
            makes them more.
        longest: Seconds of the longest of each layer's calls.
        of_ranks: Bytes a second of each rank while it worked.
    """

    calls: int
    num_bytes: int
    working: float
    longest: float
    of_ranks: tuple[float, ...]

    @property
    def bytes_per_second(self) -> float:
        """Bytes of all ranks by the time in which any worked."""
        return self.num_bytes / self.working

    @classmethod
    def of(cls, ranks: Sequence[Sequence[PoolCall]]) -> PoolRate:
        """From the same calls of every rank, in order.

        Raises:
            ValueError: There are none, or the ranks do not have the same.
        """
        if not ranks or not ranks[0]:
            raise ValueError("no pool was called: is every expert in a slot?")
        counts = [len(calls) for calls in ranks]
        if len(set(counts)) > 1:
            raise ValueError(f"the ranks' pools were called {counts} times, so calls have no pairs")
        together = list(zip(*ranks, strict=True))
        return cls(
            calls=len(together),
            num_bytes=sum(call.num_bytes for calls in ranks for call in calls),
            working=sum(map(_working, together)) / _SECOND,
            longest=sum(max(map(_took, calls)) for calls in together) / _SECOND,
            of_ranks=tuple(
                sum(call.num_bytes for call in calls) / sum(map(_took, calls)) * _SECOND
                for calls in ranks
            ),
        )


class RankCalls:
    """The rank files of a running engine, and how far they have been read.

    Args:
        folder: Of the engine or above it.
        ranks: How many.

    Raises:
        FileNotFoundError: There are not so many.
    """

    def __init__(self, folder: Path, ranks: int) -> None:
        paths = sorted(folder.rglob("rank-*.ktd"))
        if len(paths) != ranks:
            raise FileNotFoundError(f"{folder} has {len(paths)} rank files, not {ranks}")
        self.files = [RankFileReader(path) for path in paths]
        self._read = self._settled()

    def mark(self) -> None:
        """What has been until now does not count."""
        self._read = self._settled()

    def rate(self, tokens: int) -> PoolRate:
        """Of the steps of so many rows since the mark; those of another number are no decode.

        Raises:
            ValueError: As of :meth:`PoolRate.of`.
        """
        self._settled()
        return PoolRate.of(self._since(tokens))

    def _since(self, tokens: int) -> list[list[PoolCall]]:
        return [
            [call for call in file.pool_calls(read) if call.tokens == tokens]
            for file, read in zip(self.files, self._read, strict=True)
        ]

    def layer_rates(self, tokens: int, layers: int) -> list[float]:
        """Bytes a second of each layer, the median of its calls since the mark.

        Memory need not be equally fast everywhere, and a layer's stays where it is.
        """
        calls = self._since(tokens)
        steps = min(map(len, calls)) // layers
        found: list[list[float]] = [[] for _ in range(layers)]
        # From the end: a step of another number of rows may stand before.
        together = zip(*(rank[len(rank) - steps * layers :] for rank in calls), strict=True)
        for number, layer in enumerate(together):
            num_bytes = sum(call.num_bytes for call in layer)
            found[number % layers].append(num_bytes / _working(layer) * _SECOND)
        return [statistics.median(rates) for rates in found]

    def _settled(self) -> list[int]:
        """How many calls each has, once no step is under way: an engine ends one it has begun.

        Raises:
            TimeoutError: There is always one.
        """
        for _ in range(_LOOKS):
            before = [file.num_pool_calls for file in self.files]
            time.sleep(_LOOK_SECONDS)
            if before == [file.num_pool_calls for file in self.files]:
                return before
        raise TimeoutError(
            f"the engine has not come to rest in {_LOOKS * _LOOK_SECONDS:.0f} s: does "
            "somebody else use it?"
        )


def _took(call: PoolCall) -> int:
    return call.ended_ns - call.began_ns


def _working(calls: Sequence[PoolCall]) -> int:
    """Nanoseconds in which at least one of them ran."""
    total, until = 0, 0
    for call in sorted(calls):
        total += max(0, call.ended_ns - max(until, call.began_ns))
        until = max(until, call.ended_ns)
    return total
