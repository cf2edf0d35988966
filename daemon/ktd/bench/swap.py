"""``ktd bench swap``: moves experts while streams decode, and what either costs the other.

Stretches with and without swaps take turns. In one with swaps the placement is changed through the
daemon's API, back and forth between two sets of experts, as fast as it goes or at a given rate.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ktd.bench.decode_load import DecodeLoad, Stretch
from ktd.bench.summary import Summary
from ktd.errors import ConfigError

if TYPE_CHECKING:
    from ktd.client import KtdClient, Placement

# Of the API, where a rate of experts is asked for and nothing else.
CALLS_PER_SECOND = 4.0


@dataclass(frozen=True, slots=True)
class SwapPair:
    """One stretch without swaps and the next one, with them.

    Attributes:
        quiet, busy: The streams in either.
        experts: Copied into slots in the second.
        num_bytes: The same in bytes, over all ranks.
        seconds: That moving took, calls of the API and all.
        swap_seconds: Of those, from the beginning of each swap to its end.
        calls: Of the API.
        move_calls: Calls into the schedulers between two steps, that swaps made.
        move_call_seconds: What those took of rank 0's scheduler.
    """

    quiet: Stretch
    busy: Stretch
    experts: int
    num_bytes: int
    seconds: float
    swap_seconds: float
    calls: int
    move_calls: int
    move_call_seconds: float


@dataclass(frozen=True, slots=True)
class SwapAlone:
    """A stretch of swaps in which nothing is decoded, so that nobody else reads the host's memory.

    Attributes:
        num_bytes: Copied into slots, over all ranks.
        seconds: That it took, calls of the API and all.
        swap_seconds: Of those, from the beginning of each swap to its end.
    """

    num_bytes: int
    seconds: float
    swap_seconds: float


@dataclass(frozen=True, slots=True)
class SwapResult:
    """All pairs.

    Attributes:
        pairs: In the order in which they were measured.
        alone: Swaps without streams; None where a rate was asked for.
        slots: Of all layers.
        expert_bytes: Of one, over all ranks.
        link_bytes_per_second: What the GPU reads of the host's memory when nothing else runs; None
            without a GPU.
    """

    pairs: tuple[SwapPair, ...]
    slots: int
    expert_bytes: int
    alone: SwapAlone | None = None
    link_bytes_per_second: float | None = None

    @property
    def experts_per_second(self) -> Summary:
        """Moved."""
        return Summary.of([pair.experts / pair.seconds for pair in self.pairs])

    @property
    def bytes_per_second(self) -> Summary:
        """Copied."""
        return Summary.of([pair.num_bytes / pair.seconds for pair in self.pairs])

    @property
    def swap_bytes_per_second(self) -> Summary:
        """Copied, by the time of the swaps alone: between two a client decides and asks."""
        return Summary.of([pair.num_bytes / pair.swap_seconds for pair in self.pairs])

    @property
    def throughput_ratio(self) -> Summary:
        """Decode throughput with swaps over that without."""
        return Summary.of(
            [pair.busy.tokens_per_second / pair.quiet.tokens_per_second for pair in self.pairs]
        )

    @property
    def p99_ratio(self) -> Summary:
        """99th percentile between tokens, with swaps over without."""
        return Summary.of(
            [pair.busy.between_tokens.p99 / pair.quiet.between_tokens.p99 for pair in self.pairs]
        )

    @property
    def move_call_ms(self) -> Summary:
        """Milliseconds of a call into a scheduler, the mean of each stretch."""
        return Summary.of(
            [1e3 * pair.move_call_seconds / max(1, pair.move_calls) for pair in self.pairs]
        )

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        ratios = {
            "experts_per_second": asdict(self.experts_per_second),
            "bytes_per_second": asdict(self.bytes_per_second),
            "swap_bytes_per_second": asdict(self.swap_bytes_per_second),
            "throughput_ratio": asdict(self.throughput_ratio),
            "p99_ratio": asdict(self.p99_ratio),
            "move_call_ms": asdict(self.move_call_ms),
        }
        return asdict(self) | ratios


@dataclass(frozen=True, slots=True)
class Exchange:
    """Two placements of which each slot holds something else, as far as there are experts enough.

    Attributes:
        here: Experts per layer.
        there: As many of others.
    """

    here: Mapping[int, tuple[int, ...]]
    there: Mapping[int, tuple[int, ...]]

    @classmethod
    def of(cls, placement: Placement) -> Exchange:
        """From the placement now.

        Raises:
            ConfigError: No layer has both experts in slots and others.
        """
        here, there = {}, {}
        for row in placement.layers:
            inside = tuple(row.gpu_experts)
            others = [expert for expert in range(row.num_experts) if expert not in set(inside)]
            moved = min(len(inside), len(others))
            if moved:
                here[row.layer] = inside
                there[row.layer] = tuple(sorted((*inside[moved:], *others[:moved])))
        if not here:
            raise ConfigError(
                "no layer has both experts in slots and experts outside: give ktd bench swap a "
                "--gpu-experts-ratio between 0 and 1"
            )
        return cls(here, there)

    def steps(self, moves: int | None) -> list[dict[int, tuple[int, ...]]]:
        """Partial targets that lead from here to there, each of about ``moves``; None: one."""
        if moves is None:
            return [dict(self.there)]
        steps: list[dict[int, tuple[int, ...]]] = [{}]
        left = moves
        for layer, target in self.there.items():
            now = set(self.here[layer])
            leaving = sorted(now - set(target))
            entering = sorted(set(target) - now)
            while entering:
                count = min(left, len(entering))
                now = (now - set(leaving[:count])) | set(entering[:count])
                leaving, entering = leaving[count:], entering[count:]
                steps[-1][layer] = tuple(sorted(now))
                left -= count
                if not left:
                    steps.append({})
                    left = moves
        return [step for step in steps if step]

    def reversed(self) -> Exchange:
        """The way back."""
        return Exchange(self.there, self.here)


async def measure_swaps(
    client: KtdClient,
    load: DecodeLoad,
    *,
    seconds: float,
    pairs: int,
    rate: float | None,
    calls_per_second: float = CALLS_PER_SECOND,
    progress: Callable[[str], None],
) -> SwapResult:
    """Measures ``pairs`` of stretches of ``seconds`` each.

    Args:
        client: Of the daemon that serves ``load``.
        load: Streams that are running.
        seconds: Length of a stretch.
        pairs: How many.
        rate: Experts a second; None: as fast as it goes.
        calls_per_second: Of the API, between which a rate's experts are divided.
        progress: Told what was measured.

    Raises:
        KtdError: A swap failed, or a stream broke off.
    """
    placement = await client.placement()
    mover = _Mover(client, Exchange.of(placement), rate, calls_per_second)
    found: list[SwapPair] = []
    for number in range(pairs):
        quiet = await asyncio.to_thread(load.measure, seconds)
        before, swapping = mover.moved, mover.seconds
        called = await _move_calls(client)
        begin = time.perf_counter()
        await mover.run(begin + seconds)
        end = time.perf_counter()
        busy = load.stretch(begin, end)
        move_calls = [b - a for a, b in zip(called, await _move_calls(client), strict=True)]
        experts, size, calls = (a - b for a, b in zip(mover.moved, before, strict=True))
        swapping = mover.seconds - swapping
        found.append(
            SwapPair(
                quiet,
                busy,
                experts,
                size,
                end - begin,
                swapping,
                calls,
                move_calls=int(move_calls[0]),
                move_call_seconds=move_calls[1],
            )
        )
        progress(
            f"pair {number + 1}/{pairs}: {experts / (end - begin):.1f} experts/s, "
            f"{quiet.tokens_per_second:.1f} tokens/s without, {busy.tokens_per_second:.1f} with"
        )
    slots = sum(row.slots for row in placement.layers)
    size = found[-1].num_bytes // max(1, found[-1].experts)
    alone = None if rate is not None else await _alone(load, mover, seconds)
    return SwapResult(tuple(found), slots, size, alone)


async def _move_calls(client: KtdClient) -> tuple[int, float]:
    """So far: how many, and their seconds."""
    totals = (await client.stats()).totals
    return totals.move_calls, totals.move_call_time.ToNanoseconds() / 1e9


async def _alone(load: DecodeLoad, mover: _Mover, seconds: float) -> SwapAlone:
    with contextlib.ExitStack() as stack:
        await asyncio.to_thread(stack.enter_context, load.paused())
        before, swapping = mover.moved, mover.seconds
        begin = time.perf_counter()
        await mover.run(begin + seconds)
        took = time.perf_counter() - begin
        return SwapAlone(mover.moved[1] - before[1], took, mover.seconds - swapping)


class _Mover:
    """Goes to and fro between two placements."""

    def __init__(
        self, client: KtdClient, exchange: Exchange, rate: float | None, calls: float
    ) -> None:
        self._client = client
        self._rate = rate
        self._moves = None if rate is None else max(1, round(rate / calls))
        self._exchange = exchange
        self._steps: Sequence[Mapping[int, Sequence[int]]] = exchange.steps(self._moves)
        self._next = 0
        self._etag: str | None = None  # None: of the placement now, whatever it is
        self.moved = (0, 0, 0)  # experts, bytes, calls
        self.seconds = 0.0  # of swaps

    async def run(self, until: float) -> None:
        """Applies steps until that moment, by ``time.perf_counter``; at least one."""
        began, before = time.perf_counter(), self.moved[0]
        while True:
            await self._step()
            now = time.perf_counter()
            if self._rate is not None:
                due = began + (self.moved[0] - before) / self._rate
                await asyncio.sleep(max(0.0, min(due, until) - now))
            if time.perf_counter() >= until:
                return

    async def _step(self) -> None:
        if self._next == len(self._steps):
            self._exchange = self._exchange.reversed()
            self._steps = self._exchange.steps(self._moves)
            self._next = 0
        target = self._steps[self._next]
        self._next += 1
        swap = await self._client.apply_and_wait(layers=target, partial=True, etag=self._etag)
        self._etag = swap.etag
        experts, size, calls = self.moved
        self.moved = (experts + swap.moves_total, size + swap.bytes_done, calls + 1)
        self.seconds += (swap.end_time.ToNanoseconds() - swap.create_time.ToNanoseconds()) / 1e9
