"""Copies of experts on several streams: nothing begins too early, and nothing is forgotten.

On a driver of the tests' own, in a process that has no other (late_driver.c).
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
PROGRAM = """
import ctypes, json, sys
import numpy as np
from ktd.experts import _native

driver = ctypes.CDLL("libcuda.so.1")
for name in ("late_stream", "late_target"):
    getattr(driver, name).restype = ctypes.c_size_t
pointer = ctypes.c_void_p


def event():
    made = pointer()
    driver.cuEventCreate(ctypes.byref(made), 0)
    return made


case = json.loads(sys.argv[1])
streams = list(range(1, case["streams"] + 1))
random = np.random.default_rng(0)
sources = [random.integers(0, 256, size, dtype=np.uint8) for size in case["sizes"]]
targets = [np.zeros_like(source) for source in sources]
rows = [(t.ctypes.data, s.ctypes.data, s.nbytes) for t, s in zip(targets, sources)]

# What the first stream has before: a copy of another batch, which an event of the steps precedes.
early = np.zeros(8, np.uint8), np.full(8, 7, np.uint8)
unmapped = event()
driver.cuEventRecord(unmapped, pointer(9))
driver.cuStreamWaitEvent(pointer(1), unmapped, 0)
driver.cuMemcpyAsync(
    ctypes.c_size_t(early[0].ctypes.data), ctypes.c_size_t(early[1].ctypes.data),
    ctypes.c_size_t(8), pointer(1),
)
copies = _native.SlotCopies(
    np.array(rows, np.int64).reshape(-1, 3), case["piece"], streams=streams,
    most_ahead=case["most_ahead"], together=case["together"],
)
turns, refused = 0, ""
try:
    while not copies.done and turns < case["turns"]:
        copies.run(1e-9 if case["turns"] < 99 else 10.0, case["rate"])
        turns += 1
except RuntimeError as error:
    refused = str(error)
copies.finish()
copies.finish()
done_before = driver.late_copies()
mark = event()
driver.cuEventRecord(mark, pointer(1))
assert driver.cuEventSynchronize(mark) == 0
log = [(driver.late_stream(n), driver.late_target(n)) for n in range(driver.late_copies())]
print(json.dumps({
    "whole": [bool((t == s).all()) for t, s in zip(targets, sources)],
    "done_before": done_before,
    "first_is_early": log[0][1] == early[0].ctypes.data,
    "streams": sorted({stream for stream, _ in log[1:]}),
    "copies": len(log) - 1,
    "refused": refused,
    "calls": [driver.late_call(n) for n in range(driver.late_copies()) if driver.late_call(n)]
    if hasattr(driver, "late_call") else [],
}))
"""


def made(folder, *options):
    if COMPILER is None:
        pytest.skip("there is no C compiler")
    source = Path(__file__).with_name("late_driver.c")
    command = [COMPILER, "-shared", "-fPIC", "-Wall", "-Werror", *options, "-o"]
    subprocess.run([*command, str(folder / "libcuda.so.1"), str(source)], check=True)
    return folder


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    """One copy a call, as before CUDA 12.8."""
    return made(tmp_path_factory.mktemp("driver"))


@pytest.fixture(scope="module")
def newer(tmp_path_factory):
    """Several copies a call."""
    return made(tmp_path_factory.mktemp("newer"), "-DSEVERAL_AT_ONCE")


def run(driver, **case):
    usual = {"streams": 4, "sizes": [], "piece": 1 << 20, "most_ahead": 1 << 30, "turns": 1000}
    usual |= {"together": 64, "rate": 0.0}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(usual | case)],
        env=os.environ | {"LD_LIBRARY_PATH": str(driver)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


SIZES = [2000, 1000, 40, 20] * 6


@pytest.mark.parametrize("streams", [1, 2, 4])
@pytest.mark.parametrize("piece", [1 << 20, 300])
def test_all_copies_are_done_behind_the_first_stream_and_none_before_it(driver, streams, piece):
    """Whoever waits on the first stream has them all; they begin behind what it had before."""
    found = run(driver, streams=streams, sizes=SIZES, piece=piece)
    assert all(found["whole"])
    assert found["first_is_early"]
    assert found["streams"] == list(range(1, streams + 1))
    assert found["copies"] == sum(-(-size // piece) for size in SIZES)
    assert found["done_before"] == 0  # nothing waited


def test_what_is_in_flight_is_limited(driver):
    """The thread waits for the oldest part, here one of another stream than the first; what comes
    before the batch has happened then."""
    found = run(driver, sizes=[10, *SIZES], most_ahead=4000)
    assert all(found["whole"])
    assert found["done_before"] > 0
    assert found["first_is_early"]


def test_what_was_enqueued_before_a_batch_was_given_up_is_waited_for(driver):
    """Its slots are taken again by others, so nothing may arrive in them later."""
    found = run(driver, sizes=SIZES, turns=3)
    assert 0 < found["copies"] < len(SIZES)
    assert sum(found["whole"]) == found["copies"]


# The first copy is the other batch's.
@pytest.mark.parametrize(
    ("options", "call"),
    [
        (["-DREFUSED=6"], "cuMemcpyAsync"),
        (["-DREFUSED=6", "-DSEVERAL_AT_ONCE"], "the driver's copying"),
    ],
    ids=["one-a-call", "several-a-call"],
)
def test_a_copy_that_the_driver_refuses_is_said_and_those_before_it_are_waited_for(
    tmp_path, options, call
):
    """Nothing of the batch follows it, and nothing arrives later in slots that are taken again."""
    found = run(made(tmp_path, *options), sizes=SIZES)
    assert found["refused"] == f"{call} says invalid argument (1)"
    assert found["copies"] == sum(found["whole"]) == 4
    assert found["whole"][:4] == [True] * 4
    assert found["done_before"] == 0


def test_a_batch_of_nothing_enqueues_nothing(driver):
    """Moves out of slots copy no expert."""
    assert run(driver)["copies"] == 0


@pytest.mark.parametrize("together", [2, 7, 64])
@pytest.mark.parametrize("piece", [1 << 20, 300])
def test_a_driver_that_takes_several_copies_gets_them_on_the_first_stream(newer, together, piece):
    found = run(newer, sizes=SIZES, piece=piece, together=together)
    count = sum(-(-size // piece) for size in SIZES)
    whole, rest = divmod(count, together)
    assert all(found["whole"])
    assert found["first_is_early"]
    assert found["streams"] == [1]
    assert found["calls"] == [together] * whole + [rest] * (rest > 0)
    assert found["copies"] == count
    assert found["done_before"] == 0


def test_a_driver_that_takes_them_and_not_for_this_device_gets_one_at_a_time(tmp_path):
    found = run(
        made(tmp_path, "-DSEVERAL_AT_ONCE", "-DNOT_ON_THIS_DEVICE"), sizes=SIZES, together=7
    )
    assert all(found["whole"])
    assert found["first_is_early"]
    assert found["streams"] == [1]
    assert not found["calls"]


def test_one_at_a_time_is_possible_there_too(newer):
    found = run(newer, sizes=SIZES, together=1)
    assert all(found["whole"])
    assert found["streams"] == [1, 2, 3, 4]
    assert not found["calls"]


def test_what_is_in_flight_is_limited_there_too(newer):
    found = run(newer, sizes=[10, *SIZES], most_ahead=8000)
    assert all(found["whole"])
    assert found["done_before"] > 0
    assert len(found["calls"]) > 1


def test_no_copy_waits_for_the_next_where_there_is_a_rate(newer):
    """Otherwise a limited rate would be bursts of 64 copies."""
    found = run(newer, sizes=SIZES, rate=1e6)
    assert all(found["whole"])
    assert set(found["calls"]) == {1}


def test_nor_does_one_wait_for_the_next_turn(newer):
    found = run(newer, sizes=SIZES, turns=3)
    assert 0 < found["copies"] < len(SIZES)
    assert sum(found["whole"]) == found["copies"]
    assert found["calls"] == [1, 1, 1]
