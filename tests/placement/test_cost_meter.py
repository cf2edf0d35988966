"""Figures of the cost model from counters as a real engine's grow, and from copies."""

import random

import pytest

from ktd.placement.cost import CostModel
from ktd.placement.cost_meter import CostMeter, StepCounters


class Engine:
    """Decodes with a known rate and a known rest, read once a second."""

    def __init__(self, meter, *, rate=1e9, rest=0.01, engine_id="e"):
        self.meter, self.rate, self.rest, self.engine_id = meter, rate, rest, engine_id
        self.time, self.steps, self.tokens, self.bytes, self.prefills = 0.0, 0, 0, 0, 0
        self.read()

    def read(self):
        self.meter.counted(
            StepCounters(
                self.time, self.engine_id, self.steps, self.tokens, self.prefills, self.bytes
            )
        )

    def second(self, cpu_bytes, *, idle=0.0, batch=2):
        step = self.rest + cpu_bytes / self.rate
        steps = round((1 - idle) / step)
        self.time += steps * step + idle
        self.steps += steps
        self.tokens += steps * batch
        self.bytes += steps * cpu_bytes
        self.read()


def test_step_and_batch_are_those_of_late():
    """Seconds per step while decoding; tokens per step."""
    meter = CostMeter(CostModel())
    engine = Engine(meter)
    assert (meter.step_seconds, meter.batch) == (0.0, 0.0)
    for _ in range(5):
        engine.second(20_000_000)
    assert meter.step_seconds == pytest.approx(0.03)
    assert meter.batch == 2


def test_rate_of_the_cpu_is_the_slope_and_idle_times_do_not_bend_it():
    """A third of the stretches with pauses of up to half a second."""
    generator = random.Random(4)  # repeatable data
    meter = CostMeter(CostModel())
    engine = Engine(meter)
    for turn in range(36):
        idle = generator.random() / 2 if turn % 3 == 0 else 0.0
        engine.second(generator.randrange(5_000_000, 60_000_000), idle=idle)
    costs = meter.costs()
    assert costs.measured == ("cpu_bytes_per_second",)
    assert costs.cpu_bytes_per_second == pytest.approx(1e9, rel=0.15)


def test_equal_stretches_say_nothing_of_the_rate():
    """Without a difference the rate and the rest cannot be told apart: the default stays."""
    meter = CostMeter(CostModel())
    engine = Engine(meter)
    for _ in range(30):
        engine.second(20_000_000)
    assert meter.costs() == CostModel()


def test_where_both_sides_take_turns_the_slope_is_their_difference():
    """A slot that is as fast as the CPU: no slope, and the CPU's rate is the slot's."""
    base = CostModel(gpu_bytes_per_second=2e9, overlap=False)
    meter = CostMeter(base)
    engine = Engine(meter, rate=2e9)
    for turn in range(12):
        engine.second(20_000_000 * (1 + turn % 3))
    # 1 / rate = slope + 1 / slots' rate.
    assert meter.costs().cpu_bytes_per_second == pytest.approx(1e9, rel=0.01)
    # A byte that leaves the CPU is four in a slot: 1 / rate = slope + 4 / slots' rate.
    share = meter.costs(cpu_share=0.25)
    assert share.cpu_bytes_per_second == pytest.approx(0.4e9, rel=0.01)


def test_prefill_and_another_engine_are_not_decoding():
    """Stretches with a prefill are left out; a new engine begins anew."""
    meter = CostMeter(CostModel())
    engine = Engine(meter)
    engine.prefills += 1
    engine.second(20_000_000)
    assert meter.step_seconds == 0.0
    engine.second(20_000_000)
    assert meter.step_seconds > 0.0
    Engine(meter, engine_id="f")
    assert meter.step_seconds == 0.0


def test_other_traffic_of_before_does_not_count():
    """The batch has grown: the step of the small batch is not that of now."""
    meter = CostMeter(CostModel())
    engine = Engine(meter)
    for _ in range(10):
        engine.second(10_000_000, batch=1)
    engine.second(90_000_000, batch=16)
    assert (meter.batch, meter.step_seconds) == (16, pytest.approx(0.1))


def test_copies_measure_the_link():
    """Bytes over seconds of all remembered ones; nothing at all is no measurement."""
    meter = CostMeter(CostModel())
    meter.copied(0, 1.0)
    meter.copied(10, 0.0)
    assert meter.costs().measured == ()
    meter.copied(300, 1.0)
    meter.copied(100, 1.0)
    assert meter.costs().link_bytes_per_second == 200
    assert meter.costs().measured == ("link_bytes_per_second",)
