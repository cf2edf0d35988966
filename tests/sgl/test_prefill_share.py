"""How a long prefill is divided between CPU and link."""

import pytest

from ktd.sgl.prefill_share import PrefillShare

EXPERT, LINK = 10_000_000, 50e9  # 0.2 ms an expert


class Pool:
    """Takes ``cost`` seconds an expert."""

    def __init__(self):
        self.seconds, self.num_bytes = 0.0, 0

    def spent(self):
        return self.seconds, self.num_bytes

    def compute(self, experts, cost):
        self.seconds += experts * cost
        self.num_bytes += experts * EXPERT


@pytest.fixture(name="pool")
def pool_fixture():
    return Pool()


@pytest.fixture(name="share")
def share_fixture(pool):
    return PrefillShare(EXPERT, LINK, pool.spent)


def test_before_anything_is_known_a_fifth_goes_to_the_cpu(share):
    """Enough to learn from, too little to hold a pass up for long."""
    assert share.experts(1024, 100) == 20


def test_both_sides_take_equally_long_once_the_cost_is_known(pool, share):
    share.begin(1024)
    pool.compute(20, 0.0002)
    share.begin(1024)
    assert share.experts(1024, 100) == 50
    pool.compute(50, 0.0002)
    share.begin(1024)
    assert share.cpu_seconds(1024) == pytest.approx(0.0002)


def test_more_tokens_cost_more_until_they_are_measured(pool, share):
    share.begin(1024)
    pool.compute(20, 0.0002)
    share.begin(8192)
    assert share.cpu_seconds(8192) == pytest.approx(8 * 0.0002)
    assert share.cpu_seconds(512) == pytest.approx(0.0002)
    pool.compute(10, 0.001)
    share.begin(8192)
    assert share.cpu_seconds(8192) == pytest.approx(0.001)
    assert share.cpu_seconds(1024) == pytest.approx(0.0002)


def test_costs_follow_a_host_that_changes(pool, share):
    share.begin(1024)
    for cost in (0.0002, 0.0004, 0.0004, 0.0004, 0.0004, 0.0004):
        pool.compute(30, cost)
        share.begin(1024)
    assert share.cpu_seconds(1024) == pytest.approx(0.0004, rel=0.05)


def test_a_pass_that_has_not_run_yet_teaches_nothing(pool, share):
    share.begin(1024)
    share.begin(1024)
    pool.compute(20, 0.0002)
    share.begin(1024)
    assert share.cpu_seconds(1024) == pytest.approx(0.0002)


def test_all_in_slots_leaves_nothing_to_divide(share):
    assert share.experts(1024, 0) == 0
