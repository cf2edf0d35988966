"""A pool that will not answer is noticed, and one that computes or rests is left alone."""

import subprocess
import sys
import threading
import time

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from ktd.experts.pool import ExpertPool
from ktd.experts.weights import ExpertWeights, WeightFormat
from ktd.sgl.pool_watch import PoolWatch
from tests.live import ROOT

EXPERTS, HIDDEN, INTERMEDIATE, TOKENS = 8, 256, 1024, 16


def work(pool):
    """A layer large enough for two threads, and what to call it with."""
    w13 = torch.randn(EXPERTS, 2 * INTERMEDIATE, HIDDEN).bfloat16()
    w2 = torch.randn(EXPERTS, HIDDEN, INTERMEDIATE).bfloat16()
    layer = pool.add_layer(ExpertWeights(WeightFormat.BF16, w13, w2))
    ids = torch.arange(TOKENS, dtype=torch.int32)[:, None] % EXPERTS
    return layer, torch.randn(TOKENS, HIDDEN).bfloat16(), ids, torch.ones(TOKENS, 1)


def lose_a_thread():
    """Run in a process of its own: the call never ends, nor would a test that makes it."""
    import os

    from tests.faults.points import end_a_pool_thread

    def end(why):
        print(why, flush=True)
        os._exit(3)

    pool = ExpertPool(threads=2)
    arguments = work(pool)
    pool.forward(*arguments)
    end_a_pool_thread()
    PoolWatch(pool, end, looks=5, look_s=0.1)
    while True:  # a thread that was late takes no part for a while
        pool.forward(*arguments)


def test_a_thread_that_ended_is_noticed_by_the_call_that_waits_for_it():
    """Nothing else would ever end that call."""
    script = "from tests.sgl.test_pool_watch import lose_a_thread; lose_a_thread()"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert done.stdout.strip() == "a thread of the CPU pool has not come back for 0.5 s"


def test_a_pool_that_computes_or_rests_is_left_alone():
    """Many calls, each shorter than the time between two looks, then none."""
    pool, complaints = ExpertPool(threads=2), []
    arguments = work(pool)
    PoolWatch(pool, complaints.append, looks=20, look_s=0.1)
    until = time.monotonic() + 3
    while time.monotonic() < until:
        pool.forward(*arguments)
    time.sleep(2.5)
    assert complaints == []
    assert "ktd-pool-watch" in [thread.name for thread in threading.enumerate()]
