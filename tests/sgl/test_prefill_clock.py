"""What is learnt from which pass: only from one that was streamed, and that alone has ended."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from ktd.sgl.prefill_clock import PrefillClock
from ktd.sgl.prefill_share import PrefillShare


@dataclass
class Device:
    """A stream that runs when it is told to: each event has a moment, and has passed up to one."""

    launched: float = 0.0  # milliseconds of work enqueued so far
    passed: float = -1.0

    def event(self):
        return Event(self)


@dataclass
class Event:
    """Of a :class:`Device`."""

    device: Device
    at: float = field(default=float("inf"))

    def record(self):
        self.at = self.device.launched

    def query(self):
        return self.at <= self.device.passed

    def elapsed_time(self, later):
        return later.at - self.at


class Rig:
    """Launches steps on the device; the pool's seconds follow when they run."""

    def __init__(self):
        self.device, self.seconds = Device(), 0.0
        self.share = PrefillShare(0.0, num_experts=8, top_k=2)
        self.clock = PrefillClock(self.share, lambda: self.seconds, self.device.event)

    def launch(self, tokens, *, gaps_ms=(2.0, 2.0, 2.0), experts=6):
        """One step of layers that are so far apart and wait 5 ms for the pool."""
        layers = len(gaps_ms)
        self.clock.begin(tokens, layers, experts if tokens else 0)
        for _ in range(layers if tokens else 0):
            self.clock.copying()
            self.device.launched += 4.0
            self.clock.copied(8)
        for gap in gaps_ms:
            self.device.launched += gap
            self.clock.published()
            self.device.launched += 5.0
            answered = self.clock.answered()
            if answered is not None:
                answered.record()
        self.clock.launched()
        self.device.launched += 1.0

    def run(self, seconds):
        """All that was launched runs, and the pool takes so long for it."""
        self.device.passed = self.device.launched
        self.seconds += seconds


@pytest.fixture(name="rig")
def rig_fixture():
    return Rig()


def test_a_pass_that_has_ended_teaches_what_it_took(rig):
    rig.launch(1000)
    rig.clock.look()
    assert not rig.share.knows_cpu
    rig.run(0.015)
    rig.clock.look()
    assert rig.share.cost(1000) == (pytest.approx(0.015 / 6), pytest.approx(0.002))
    assert rig.share.link_seconds == pytest.approx(0.004 / 8)


def test_long_calls_of_a_step_that_was_not_streamed_are_nobodys(rig):
    rig.launch(0)
    rig.run(3.0)
    rig.clock.look()
    rig.launch(1000)
    rig.run(0.015)
    rig.clock.look()
    assert rig.share.cost(1000)[0] == pytest.approx(0.015 / 6)


def test_steps_that_ended_unseen_together_teach_nothing(rig):
    rig.launch(1000)
    rig.launch(0)
    rig.run(3.0)
    rig.clock.look()
    assert not rig.share.knows_cpu
    rig.launch(1000)
    rig.run(0.015)
    rig.clock.look()
    assert rig.share.cost(1000)[0] == pytest.approx(0.015 / 6)


def test_a_pass_without_a_share_tells_about_the_link_alone(rig):
    rig.launch(1000, experts=0)
    assert rig.clock.answered() is None
    rig.run(0.0)
    rig.clock.look()
    assert rig.share.link_seconds == pytest.approx(0.004 / 8)
    assert not rig.share.knows_cpu


def test_kernels_that_are_compiled_on_the_way_count_for_little(rig):
    """Seconds in one layer of the first pass; if they were believed, the CPU would get nothing."""
    rig.launch(1000, gaps_ms=(2.0, 2.0, 3000.0, 2.0, 2.0, 2.0))
    rig.run(0.015)
    rig.clock.look()
    assert rig.share.cost(1000)[1] == pytest.approx((4 * 0.002 + 4 * 0.002) / 5)


def test_calls_that_the_pool_does_not_count_are_not_taken_for_free(rig):
    """Of few tokens, where the threshold is as low."""
    rig.launch(100)
    rig.run(0.0)
    rig.clock.look()
    assert not rig.share.knows_cpu


def test_a_single_layer_has_nothing_between(rig):
    rig.launch(1000, gaps_ms=(2.0,))
    rig.run(0.015)
    rig.clock.look()
    assert rig.share.cost(1000)[1] == 0.0
