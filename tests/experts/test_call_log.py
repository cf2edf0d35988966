"""What a pool's calls took reaches other processes by the rank file."""

from __future__ import annotations

import itertools
import time

import pytest

torch = pytest.importorskip("torch", reason="pools compute for torch tensors")

from ktd.experts.pool import ExpertPool  # noqa: E402 - after the skip
from ktd.rankfile import POOL_CALLS, RankFileReader, RankFileWriter, path_of  # noqa: E402


@pytest.fixture(name="case")
def case_fixture(moe_step, tmp_path):
    """A pool with one layer, a step of it, the rank file it writes into, and a reader of that."""
    step = moe_step(4, 48, 16, 3, 2)
    pool = ExpertPool(threads=1)
    handle = pool.add_layer(step.experts)
    writer = RankFileWriter(path_of(tmp_path, 0), rank=0, num_layers=1, num_experts=4)
    pool.native.log_calls(writer.pool_calls_address(), POOL_CALLS)
    reader = RankFileReader(path_of(tmp_path, 0))

    def call(ids=step.ids, rows=3):
        pool.forward(handle, step.x[:rows], ids[:rows], step.weights[:rows])

    yield pool, step, call, reader
    writer.close()  # it is mapped for as long as the pool may be called


def test_calls_are_told_with_their_times_bytes_and_tokens(case):
    pool, step, call, reader = case
    assert reader.pool_calls() == []
    before = time.monotonic_ns()
    call()
    call(rows=1)
    after = time.monotonic_ns()
    first, second = reader.pool_calls()
    assert before < first.began_ns < first.ended_ns <= second.began_ns < second.ended_ns < after
    assert (first.tokens, second.tokens) == (3, 1)
    assert first.num_bytes + second.num_bytes == pool.bytes_read
    chosen = set(step.ids[0].tolist()) - {-1}
    assert second.num_bytes == 3 * 48 * 16 * 2 * len(chosen)
    assert reader.pool_calls(since=1) == [second]


def test_calls_that_read_nothing_are_not_told(case):
    _, step, call, reader = case
    call(ids=torch.full_like(step.ids, -1))
    assert reader.num_pool_calls == 0


def test_the_newest_calls_are_kept(case):
    """A reader that comes late gets as many as there is room for, but for the oldest of these."""
    _, _, call, reader = case
    for _ in range(POOL_CALLS):
        call(rows=1)
    call(rows=3)
    found = reader.pool_calls()
    assert reader.num_pool_calls == POOL_CALLS + 1
    assert len(found) == POOL_CALLS - 1
    assert [call.tokens for call in found[-2:]] == [1, 3]
    assert all(a.ended_ns <= b.began_ns for a, b in itertools.pairwise(found))


def test_a_log_has_an_address_and_room(case):
    pool = case[0]
    with pytest.raises(ValueError, match="cannot be at address 0"):
        pool.native.log_calls(0, 1)
    with pytest.raises(ValueError, match="must not be negative"):
        pool.native.log_calls(64, -1)
