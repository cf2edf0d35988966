"""A policy in a table: where it learns, and where it goes on in a later round."""

import contextlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ktd.bench.table.cells import ResultFile, planned
from ktd.bench.table.measurement import Engines, Load, TableBench
from ktd.bench.table.routing import SHIFTING, STATIONARY, LayerSizes

SIZES = LayerSizes(layers=3, experts=32, top_k=4)
LEARN, SETTLE, SETTLE_POLICY, TOKENS = 2500, 10, 70, 100


class Engine:
    """Remembers what it is asked for, as one of a table would be."""

    def __init__(self):
        self.said, self.layers = [], {}
        self.client, self.load, self.routing = self, self, self
        # The policy ends somewhere else than it began.
        self.moves_to, self.in_a_swap = 7, False

    def choose(self, kind):
        self.said.append(kind)

    async def set_policy(self, name, threshold=0):
        self.said.append(name)
        if name == "adaptive":
            self.layers = {layer: (*row[:-1], self.moves_to) for layer, row in self.layers.items()}

    def measure_tokens(self, tokens, longest):
        self.said.append(tokens)
        return SimpleNamespace(tokens_per_second=5.0, between_tokens=SimpleNamespace(p50=1.0))

    def measure(self, seconds):
        self.said.append("seconds")

    async def stats(self):
        took = SimpleNamespace(ToNanoseconds=lambda: 0)
        names = ("gpu_pairs", "cpu_pairs", "move_calls", "swap_bytes")
        return SimpleNamespace(
            totals=SimpleNamespace(move_call_time=took, **dict.fromkeys(names, 0))
        )

    async def place(self, layers):
        self.layers = dict(layers)
        self.said.append(("place", len(layers[0]), layers[0][-1]))

    async def placed(self):
        return {n: row[:-1] if self.in_a_swap else row for n, row in self.layers.items()}


class Table(TableBench):
    """Over that engine."""

    def __init__(self, path, rounds, engine):
        engines = Engines(Path("m"), (), SIZES, (0, 1, 2), "bf16")
        load = Load(1, 64, 448, TOKENS, 1, SETTLE, SETTLE_POLICY, 0.1, LEARN, 60.0, rounds=rounds)
        known = np.arange(3 * 32).reshape(3, 32)
        routings = dict.fromkeys((STATIONARY, SHIFTING), SimpleNamespace(known=known))
        file = ResultFile(path, {"rounds": rounds})
        super().__init__(
            engines, load, routings, prompts=None, largest=0.5, file=file, progress=lambda _: None
        )
        self.engine = engine

    @contextlib.asynccontextmanager
    async def _started(self, *_):
        yield self.engine


@pytest.fixture
def measure(tmp_path):
    async def run(kind, engine, *, ratios=(0.25,), rounds=2, file="cells"):
        await Table(tmp_path / file, rounds, engine).run(planned((kind,), ratios, ("adaptive",), 0))
        return engine.said

    return run


LEARNS = [STATIONARY, "off", ("place", 16, 15), "adaptive", LEARN, "off"]
BEGINS = [("place", 8, 7), "adaptive", SETTLE_POLICY, "seconds", TOKENS]


async def test_it_learns_with_the_slots_of_the_largest_ratio_and_goes_on_where_it_ended(measure):
    """Once for all rows; a later round needs no time to settle."""
    engine = Engine()
    engine.moves_to = 31
    assert await measure(STATIONARY, engine, ratios=(0.25, 0.5)) == [
        *LEARNS,
        *(("place", 16, 15), "adaptive", SETTLE_POLICY, "seconds", TOKENS),
        *(STATIONARY, "off", ("place", 16, 31), "adaptive", SETTLE, TOKENS),
        *(STATIONARY, "off", *BEGINS),
        *(STATIONARY, "off", ("place", 8, 31), "adaptive", SETTLE, TOKENS),
    ]


async def test_it_settles_anew_behind_an_end_in_the_middle_of_a_swap(measure):
    """What had left its slot would not come back."""
    engine = Engine()
    engine.in_a_swap = True
    said = await measure(STATIONARY, engine)
    assert said == [*LEARNS, *BEGINS, STATIONARY, "off", *BEGINS]


async def test_it_settles_anew_where_routing_shifts(measure):
    """What it had is of another stretch by then; ten rounds of 100 tokens are two of 500."""
    said = await measure(SHIFTING, Engine(), rounds=10)
    learns = [2000 if word == LEARN else word for word in LEARNS[1:]]
    long = [500 if word == TOKENS else word for word in BEGINS]
    assert said == [SHIFTING, *learns, *long, SHIFTING, "off", *long]


async def test_a_row_of_shifting_routing_is_measured_once_at_least(measure):
    """Its runs are longer than all rounds of the other together."""
    assert (await measure(SHIFTING, Engine())).count(500) == 1


async def test_it_settles_and_learns_anew_in_an_engine_of_its_own(measure):
    """Nothing is kept of the one before."""
    await measure(STATIONARY, Engine(), rounds=1, file="one")
    engine = Engine()
    said = await measure(STATIONARY, engine, rounds=1, file="two")
    assert said == [*LEARNS, *BEGINS]
