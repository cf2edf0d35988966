"""A whole table: one engine for both routings, and its cells one after the other.

The engine has as many slots as the largest ratio needs. A cell is a placement that uses some of
them; the streams run on while it is changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import secrets
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ktd.bench.decode_load import DecodeLoad, Stretch
from ktd.bench.prompts import Prompts
from ktd.bench.servers import bench_server
from ktd.bench.table.cells import Cell, Measured, ResultFile, rows_of
from ktd.bench.table.placements import LEARNING, POLICIES, cell_placement, slots_needed
from ktd.bench.table.routing import SHIFTING, STRETCH, LayerSizes, Routing, RoutingFile
from ktd.model.facts import read_facts

if TYPE_CHECKING:
    from ktd.client import KtdClient

_OFF = "off"
_LEARNT_STRETCHES = 4
# Experts in slots, by layer.
Layers: TypeAlias = Mapping[int, Sequence[int]]


@dataclass(frozen=True, slots=True)
class Load:
    """What runs while cells are measured.

    Attributes:
        streams: At a time.
        prompt: Tokens of a prompt; ``dynamic`` is given half of them as its threshold.
        output: Tokens of a completion.
        tokens: Of one run.
        runs: Of a cell.
        settle: Tokens before a cell is measured.
        settle_policy: The same for policies.
        settle_seconds: And so long at least: a policy's moves are paced by time.
        learn: Tokens that a policy reads before its first cell, if it keeps what it has learned.
        longest: Seconds of one run, at most.
        rounds: How often a row of stationary routing is measured, its cells in turn: what disturbs
            a host for minutes does so to all of them. A policy goes on in a later round where it
            ended, unless routing shifts.
    """

    streams: int
    prompt: int
    output: int
    tokens: int
    runs: int
    settle: int
    settle_policy: int
    settle_seconds: float
    learn: int
    longest: float
    rounds: int = 1

    def tokens_of(self, kind: str) -> int:
        """Of one run: where routing shifts, whole stretches, of which each part is another."""
        return -(-self.tokens // STRETCH) * STRETCH if kind == SHIFTING else self.tokens

    def rounds_of(self, kind: str) -> int:
        """Of a row: fewer where a run is longer, so that a cell is as many tokens."""
        return max(1, round(self.rounds * self.tokens / self.tokens_of(kind)))

    def learn_of(self, kind: str) -> int:
        """Before a policy's first cell: where routing shifts, what is older is of other experts."""
        return min(self.learn, _LEARNT_STRETCHES * STRETCH) if kind == SHIFTING else self.learn


@dataclass(frozen=True, slots=True)
class Engines:
    """How engines are started: the model, options of ``ktd serve``, and what is in the model."""

    model: Path
    arguments: Sequence[str]
    sizes: LayerSizes
    moe_layers: Sequence[int]
    expert_format: str

    @classmethod
    def of_model(cls, model: Path, arguments: Sequence[str], *, device: str) -> Engines:
        """For the model in a folder.

        Raises:
            ModelUnsupported: ktd does not serve it on ``device``.
        """
        facts = read_facts(model, device=device)
        sizes = LayerSizes(len(facts.moe_layers), facts.num_experts, facts.experts_per_token)
        return cls(model, arguments, sizes, facts.moe_layers, facts.expert_format)


class OutOfTime(Exception):
    """The time that a run may take is over; what is done is kept."""


class TableBench:
    """Measures the cells that are not done yet.

    Args:
        engines: How they are started.
        load: What they compute.
        routings: By kind.
        prompts: For the streams.
        largest: Ratio that the slots are made for.
        file: Where results go.
        progress: Told what happens.
        deadline: When to stop, by ``time.monotonic``; None: when all is done.
    """

    def __init__(
        self,
        engines: Engines,
        load: Load,
        routings: Mapping[str, Routing],
        *,
        prompts: Prompts,
        largest: float,
        file: ResultFile,
        progress: Callable[[str], None],
        deadline: float | None = None,
    ) -> None:
        self._engines = engines
        self._load = load
        self._routings = routings
        self._prompts = prompts
        self._largest = largest
        self._slots = slots_needed(engines.sizes, largest)
        self._file = file
        self._progress = progress
        self._deadline = deadline
        self._took: list[float] = []
        self._left = 0
        self._learned: set[tuple[str, str]] = set()  # routing and policy
        self._settled: dict[Cell, Layers] = {}  # where a policy had come to

    async def run(self, cells: Sequence[Cell]) -> bool:
        """True when all of them are done; False when the time was over before.

        Raises:
            KtdError: An engine failed.
        """
        todo = [cell for cell in cells if self._rounds_left(cell) > 0]
        self._left = sum(self._rounds_left(cell) for cell in todo)
        self._progress(f"{len(todo)} of {len(cells)} cells to measure")
        try:
            if cells_of_table := [cell for cell in todo if not cell.check]:
                self._check_time()
                await self._engine(cells_of_table, ["--num-gpu-experts", str(self._slots)])
            for cell in todo:
                if cell.check:
                    self._check_time()
                    await self._engine([cell], ["--gpu-experts-ratio", f"{cell.ratio:g}"])
        except OutOfTime:
            self._progress(f"the time is over: {self._left} measurements are left")
            return False
        return True

    async def _engine(self, cells: Sequence[Cell], slots: Sequence[str]) -> None:
        checks = cells[0].check
        self._learned.clear()
        self._settled.clear()
        self._progress(f"starting an engine, {' '.join(slots)}")
        async with self._started([*self._engines.arguments, *slots], checks) as run:
            for cell in self._in_turn(cells):
                self._check_time()
                began = time.monotonic()
                measured = await self._cell(run, cell)
                self._file.add(cell, measured)
                self._took.append(time.monotonic() - began)
                self._left -= 1
                self._progress(self._said(cell, measured))

    def _in_turn(self, cells: Sequence[Cell]) -> Iterator[Cell]:
        """A row's cells round by round, as far as they have not been measured by then."""
        for row in rows_of(cells):
            for number in range(self._load.rounds_of(row[0].kind)):
                yield from (cell for cell in row if self._rounds_of(cell) <= number)

    def _rounds_left(self, cell: Cell) -> int:
        return self._load.rounds_of(cell.kind) - self._rounds_of(cell)

    def _rounds_of(self, cell: Cell) -> int:
        """How often it has been measured."""
        measured = self._file.results.get(cell)
        return 0 if measured is None else len(measured.rates) // self._load.runs

    @contextlib.asynccontextmanager
    async def _started(self, arguments: Sequence[str], checks: bool) -> AsyncIterator[_Running]:
        # A host that measures kernels alone has no gRPC.
        from ktd.client import KtdClient  # noqa: PLC0415

        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ktd-bench-"))
            # Nobody who finds the file later, or has one of an earlier run, can use it.
            run_id, path = secrets.token_hex(16), Path(folder) / "routing.npz"
            routing = RoutingFile(path, run_id, self._routings)
            server = stack.enter_context(
                bench_server(
                    self._engines.model,
                    ["--expert-placement-strategy", "uniform", *arguments],
                    routing=path,
                    run_id=run_id,
                    keep_cpu_path=not checks,
                )
            )
            load = stack.enter_context(
                DecodeLoad(
                    server.endpoint,
                    lambda: self._prompts.tokens(self._load.prompt),
                    streams=self._load.streams,
                    tokens=self._load.output,
                )
            )
            async with KtdClient(server.socket) as client:
                yield _Running(client, load, routing)

    async def _cell(self, run: _Running, cell: Cell) -> Measured:
        load = self._load
        run.routing.choose(cell.kind)
        await run.client.set_policy(_OFF)
        if cell.column in LEARNING and (cell.kind, cell.column) not in self._learned:
            self._learned.add((cell.kind, cell.column))
            await self._let_learn(run, cell)
        await self._settle(run, cell)
        before = (await run.client.stats()).totals
        stretches: list[Stretch] = []
        for _ in range(load.runs):
            stretch = await asyncio.to_thread(
                run.load.measure_tokens, load.tokens_of(cell.kind), longest=load.longest
            )
            stretches.append(stretch)
        after = (await run.client.stats()).totals
        if cell.column in POLICIES and cell.kind != SHIFTING:  # there it is of another stretch soon
            placed = await run.placed()
            if _size(placed) == _size(self._placement(cell)):  # and not in the middle of a swap
                self._settled[cell] = placed
        inside = after.gpu_pairs - before.gpu_pairs
        outside = after.cpu_pairs - before.cpu_pairs
        calls = after.move_calls - before.move_calls
        took = after.move_call_time.ToNanoseconds() - before.move_call_time.ToNanoseconds()
        return Measured(
            rates=tuple(stretch.tokens_per_second for stretch in stretches),
            hit_rate=inside / max(1, inside + outside),
            between_ms=statistics.median(stretch.between_tokens.p50 for stretch in stretches),
            moved_bytes=after.swap_bytes - before.swap_bytes,
            move_calls=calls,
            move_call_ms=took / 1e6 / max(1, calls),
        )

    async def _let_learn(self, run: _Running, cell: Cell) -> None:
        """With all slots in use, whatever the cell's ratio: tokens take the least time so."""
        await run.place(self._placement(dataclasses.replace(cell, ratio=self._largest)))
        await self._set_policy(run, cell.column)
        longest = 10 * self._load.longest
        tokens = self._load.learn_of(cell.kind)
        await asyncio.to_thread(run.load.measure_tokens, tokens, longest=longest)
        await run.client.set_policy(_OFF)

    async def _settle(self, run: _Running, cell: Cell) -> None:
        """Brings the engine to what is measured."""
        load = self._load
        settled = self._settled.get(cell)
        if not cell.check:
            await run.place(self._placement(cell) if settled is None else settled)
        settle, seconds = load.settle, 0.0
        if cell.column in POLICIES:
            await self._set_policy(run, cell.column)
            if settled is None:
                settle, seconds = load.settle_policy, load.settle_seconds
        if cell.column == "dynamic" and settled is None:
            # It looks at prompts alone: every stream reads one.
            settle = max(settle, load.streams * load.output)
        began = time.monotonic()
        await asyncio.to_thread(run.load.measure_tokens, settle, longest=2 * load.longest)
        if (left := began + seconds - time.monotonic()) > 0:
            await asyncio.to_thread(run.load.measure, left)

    async def _set_policy(self, run: _Running, name: str) -> None:
        await run.client.set_policy(name, threshold=max(1, self._load.prompt // 2))

    def _placement(self, cell: Cell) -> Layers:
        known = self._routings[cell.kind].known
        experts = cell_placement(cell.column, cell.ratio, self._engines.sizes, self._slots, known)
        return dict(zip(self._engines.moe_layers, experts, strict=True))

    def _check_time(self) -> None:
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise OutOfTime

    def _said(self, cell: Cell, measured: Measured) -> str:
        name = f"{cell.kind}, {100 * cell.ratio:g} %, {cell.column}"
        if cell.check:
            name += ", engine of its own"
        left = statistics.fmean(self._took) * self._left
        return (
            f"{name}: {measured.text()} tokens/s, "
            f"{100 * measured.hit_rate:.1f} % in slots{_moved(measured)}; {self._left} cells "
            f"left, about {left / 60:.1f} minutes"
        )


def _size(layers: Layers) -> int:
    return sum(map(len, layers.values()))


def _moved(measured: Measured) -> str:
    if not measured.move_calls:
        return ""
    return (
        f", {measured.moved_bytes / 1e6:.0f} MB moved by {measured.move_calls} calls of "
        f"{measured.move_call_ms:.1f} ms"
    )


@dataclass(frozen=True, slots=True)
class _Running:
    """An engine with its streams."""

    client: KtdClient
    load: DecodeLoad
    routing: RoutingFile

    async def placed(self) -> Layers:
        """The experts in slots, by layer."""
        rows = (await self.client.placement()).layers
        return {row.layer: tuple(row.gpu_experts) for row in rows}

    async def place(self, layers: Layers) -> None:
        """Moves what is not there yet; waits until it is."""
        now = await self.placed()
        if any(now[layer] != tuple(chosen) for layer, chosen in layers.items()):
            await self.client.apply_and_wait(layers=layers)
