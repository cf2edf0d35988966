"""Copies beside the steps."""

import threading

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from ktd.sgl.copier import Copier
from ktd.sgl.copy_lane import HostLane
from ktd.sgl.expert_layer import SlotCopy
from ktd.sgl.slot_source import PlainSource


class Outcomes:
    """Collects what a copier reports and lets a test wait for it."""

    def __init__(self):
        self.finished = []
        self.bytes = 0
        self._arrived = threading.Condition()

    def finish(self, batch_id, error):
        with self._arrived:
            self.finished.append((batch_id, error))
            self._arrived.notify_all()

    def count(self, num_bytes):
        self.bytes += num_bytes

    def wait(self, batches):
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.finished) >= batches, timeout=30)


@pytest.fixture
def outcomes():
    return Outcomes()


def copy_of(destination, source):
    store, slots = PlainSource({"w": source[None]}), {"w": destination[None]}
    return SlotCopy(layer=0, expert=0, slot=0, source=store, slots=slots)


def test_batches_are_copied_in_order_and_every_byte_is_counted(outcomes):
    """Both directions of the copy agree and the acknowledgements come in order."""
    copier = Copier(finished=outcomes.finish, copied=outcomes.count, bytes_per_second=None)
    source = torch.randn(3, 1000)
    targets = [torch.zeros(3, 1000) for _ in range(3)]
    for batch, target in enumerate(targets, start=1):
        copier.submit(batch, [copy_of(target, source)])
    outcomes.wait(3)
    copier.stop()
    assert outcomes.finished == [(1, None), (2, None), (3, None)]
    assert all(torch.equal(target, source) for target in targets)
    assert outcomes.bytes == 3 * source.numel() * 4


def test_a_failed_copy_fails_its_batch_and_not_the_thread(outcomes):
    """The next batch is copied as if nothing had happened."""
    copier = Copier(finished=outcomes.finish, copied=outcomes.count, bytes_per_second=None)
    good = torch.zeros(4)
    copier.submit(1, [copy_of(torch.zeros(3), torch.ones(4))])
    copier.submit(2, [copy_of(good, torch.ones(4))])
    outcomes.wait(2)
    copier.stop()
    assert outcomes.finished[0][0] == 1
    assert "copying into a slot failed" in outcomes.finished[0][1]
    assert outcomes.finished[1] == (2, None)
    assert good.tolist() == [1.0] * 4


def test_a_batch_that_follows_a_failed_one_fails_with_it(outcomes):
    """The later acknowledgement replaces the earlier; one that follows nothing starts afresh."""
    copier = Copier(finished=outcomes.finish, copied=outcomes.count, bytes_per_second=None)
    source, target = torch.randn(2, 10), torch.zeros(2, 10)
    copier.submit(1, [copy_of(torch.zeros(1, 10), source)])
    copier.submit(2, [copy_of(target, source)], follows=True)
    copier.submit(3, [copy_of(target, source)])
    outcomes.wait(3)
    copier.stop()
    (_, first), (_, second), (_, third) = outcomes.finished
    assert first.startswith("copying into a slot failed")
    assert second == first
    assert third is None
    assert torch.equal(target, source)


def test_stop_interrupts_a_slow_copy_and_says_so(outcomes):
    """A limit of 100 bytes a second does not hold up the end of the engine."""
    copier = Copier(finished=outcomes.finish, copied=outcomes.count, bytes_per_second=100.0)
    copier.submit(1, [copy_of(torch.zeros(100_000), torch.ones(100_000))])
    copier.stop()
    assert outcomes.finished == [(1, "copying into a slot failed: the engine is stopping")]
    assert outcomes.bytes < 400_000


class LateLane(HostLane):
    """Copies at once, but says so when it is told to, as a GPU's link does."""

    runs_ahead = True

    def __init__(self):
        self.marks = []
        self.arrived = threading.Semaphore(0)

    def mark(self):
        self.marks.append(LateMark())
        self.arrived.release()
        return self.marks[-1]


class LateMark:
    def __init__(self):
        self.reached = threading.Event()
        self.error = None

    def synchronize(self):
        assert self.reached.wait(30)
        if self.error is not None:
            raise self.error


@pytest.fixture
def late(outcomes):
    lane = LateLane()
    copier = Copier(
        finished=outcomes.finish, copied=outcomes.count, bytes_per_second=None, lane=lane
    )
    yield copier, lane
    for mark in lane.marks:
        mark.reached.set()
    copier.stop()


def enqueued(lane, batches):
    for _ in range(batches):
        assert lane.arrived.acquire(timeout=30)


def test_the_next_batch_is_enqueued_while_one_is_copied_and_both_end_in_order(late, outcomes):
    """The link must not wait for somebody to notice that a batch has ended."""
    copier, lane = late
    target = torch.zeros(2, 10)
    copier.submit(1, [copy_of(target[0], torch.ones(10))])
    copier.submit(2, [copy_of(target[1], torch.ones(10))], follows=True)
    copier.refuse(3, "no")
    enqueued(lane, 2)
    assert target.sum() == 20
    assert outcomes.finished == []
    lane.marks[1].reached.set()
    lane.marks[0].reached.set()
    outcomes.wait(3)
    assert outcomes.finished == [(1, None), (2, None), (3, "no")]


def test_a_batch_that_was_enqueued_behind_one_that_fails_fails_with_it(late, outcomes):
    """The failure is known when both are enqueued; a refusal between them changes nothing."""
    copier, lane = late
    copier.submit(1, [copy_of(torch.zeros(10), torch.ones(10))])
    copier.refuse(2, "no")
    copier.submit(3, [copy_of(torch.zeros(10), torch.ones(10))], follows=True)
    copier.submit(4, [copy_of(torch.zeros(10), torch.ones(10))])
    enqueued(lane, 3)
    lane.marks[0].error = RuntimeError("an illegal address")
    for mark in lane.marks:
        mark.reached.set()
    outcomes.wait(4)
    sentence = "copying into a slot failed: an illegal address"
    assert outcomes.finished == [(1, sentence), (2, "no"), (3, sentence), (4, None)]
