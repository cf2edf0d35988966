"""A mapped file that loses pages ends the process, which says why."""

import signal
import subprocess
import sys

import pytest

from ktd.experts import _native

SCRIPT = """
import faulthandler, mmap, os, sys, threading
import numpy  # tells the address of a buffer that cannot be written
from ktd.experts import _native
path, report, touched = sys.argv[1:4]
if "faulthandler" in sys.argv:
    faulthandler.enable()
times = 4096 if "threads" in sys.argv else 1  # long to write
maps = {}
for name in ("first", "second"):
    with open(f"{path}-{name}", "rb") as file:
        maps[name] = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
    address = numpy.frombuffer(maps[name], dtype=numpy.uint8).ctypes.data
    if name != "second" or touched != "unwatched":
        _native.watch_mapping(address, len(maps[name]), report, f"the {name} file" * times)
os.truncate(f"{path}-first", 0)
os.truncate(f"{path}-second", 4096)
print(maps["second"][4095], flush=True)
if "threads" in sys.argv:
    both = threading.Barrier(2)
    def touch():
        both.wait()
        # Lets other threads run, which looking at a byte does not.
        numpy.frombuffer(maps["second"], dtype=numpy.uint8)[8192:].sum()
    threading.Thread(target=touch).start()
    touch()
print(maps["first" if touched == "first" else "second"][5000])
"""


POOL = """
import mmap, os, sys
import numpy
from ktd.experts import _native
path, report = sys.argv[1:3]
with open(f"{path}-first", "rb") as file:
    mapping = numpy.frombuffer(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ), dtype=numpy.uint8)
address = mapping.ctypes.data
pool = _native.Pool(1)
layer = pool.add_layer(1, 64, 32, address, address + 8192)
_native.watch_mapping(address, len(mapping), report, "the pool's file")
os.truncate(f"{path}-first", 0)
x, ids = numpy.zeros(64, dtype=numpy.uint16), numpy.zeros(1, dtype=numpy.int32)
weights, out = numpy.ones(1, dtype=numpy.float32), numpy.zeros(64, dtype=numpy.float32)
print(0, flush=True)
pool.wait(pool.submit(layer, *(a.ctypes.data for a in (x, ids, weights, out)), 1, 1))
"""


@pytest.fixture
def run(tmp_path):
    """Touches a page that is gone, in a process of its own; what that left."""

    def run(*arguments, script=SCRIPT):
        for name in ("first", "second"):
            (tmp_path / f"file-{name}").write_bytes(bytes(16384))
        command = [sys.executable, "-c", script, tmp_path / "file", tmp_path / "report", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.stdout == "0\n", done.stderr
        report = tmp_path / "report"
        said = report.read_text() if report.exists() else None
        report.unlink(missing_ok=True)
        return done, said

    return run


@pytest.mark.parametrize("touched", ["first", "second"])
def test_the_file_is_named_and_the_process_dies_as_ever(run, touched):
    """By the signal that the kernel sent; what is still there can be read."""
    done, report = run(touched)
    assert done.returncode == -signal.SIGBUS
    assert report == f"the {touched} file"


def test_a_thread_of_the_pool_reports_too(run):
    """It is deaf to signals, but not to this one, which would otherwise kill without a word."""
    done, report = run(script=POOL)
    assert done.returncode == -signal.SIGBUS
    assert report == "the pool's file"


def test_python_shows_its_stacks_all_the_same(run):
    """SGLang's processes have a handler already."""
    done, report = run("second", "faulthandler")
    assert done.returncode == -signal.SIGBUS
    assert report == "the second file"
    assert "Fatal Python error: Bus error" in done.stderr


def test_threads_that_die_together_do_not_cut_the_report_short(run):
    """Those of the pool do: they read one expert."""
    for _ in range(5):
        done, report = run("second", "threads")
        assert done.returncode == -signal.SIGBUS
        assert report == "the second file" * 4096


def test_other_files_are_nobodys_business(run):
    """Nothing is said about a page that was not watched."""
    done, report = run("unwatched")
    assert done.returncode == -signal.SIGBUS
    assert report is None


def test_what_was_reported_first_stays(run, tmp_path):
    """The earliest failure of a process counts."""
    (tmp_path / "report").write_text("something else went wrong")
    _, report = run("first")
    assert report == "something else went wrong"


def test_a_negative_size_is_refused():
    """In one sentence."""
    with pytest.raises(ValueError, match="size must not be negative, but is -1"):
        _native.watch_mapping(4096, -1, "report", "text")
