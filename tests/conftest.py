"""Fixtures that tests of several packages use."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.device import on_gpu
from tests.live import MODEL, LiveDaemon

# A run that was put into the background by a shell ignores SIGINT, and so would the processes that
# tests start in order to interrupt them: with a handler here, they begin with the default again.
signal.signal(signal.SIGINT, signal.default_int_handler)

LIVE_ARGS = ("--kt-gpu-experts-ratio", "0.25", "--max-total-tokens", "16384")
# An engine on a CPU has three processes, of one GiB each; a worker may have started two.
WORKER_BYTES = 8 << 30
# Each engine's pool takes every core, so that more workers would wait for each other.
MOST_WORKERS = 4


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """For ``-n auto``: as many as the host has cores and memory for; engines on GPUs are alone."""
    if on_gpu():
        return 1
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(len(os.sched_getaffinity(0)), memory // WORKER_BYTES, MOST_WORKERS))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Users of the session's daemon share a process as well: every worker would start its own."""
    for item in items:
        if "live_daemon" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.alone)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests that start an engine are skipped by name where there is none to start."""
    if item.get_closest_marker("engine") and importlib.util.find_spec("sglang") is None:
        pytest.skip("SGLang is not installed here: pip install 'ktd[engine]'")


def pytest_unconfigure() -> None:
    """Keeps SWIG's capsules from being freed when the interpreter ends.

    Their destructor (as of sentencepiece 0.2.1, which Transformers imports) makes an object of a
    type that is gone by then: a segmentation fault after the last test has passed.
    """
    for name, module in list(sys.modules.items()):
        if not name.startswith("swig_runtime_data"):
            continue
        for value in vars(module).values():
            if type(value).__name__ == "PyCapsule":
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))


@pytest.fixture(scope="session")
def model_dir() -> Path:
    """The small trained MoE that the repository carries."""
    return MODEL


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A folder whose path leaves room for a Unix socket's name (107 bytes in all)."""
    path = Path(tempfile.mkdtemp(prefix="ktd-", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def live_daemon() -> Iterator[LiveDaemon]:
    """One daemon that serves ktd-tiny with a quarter of its experts in slots, for the session.

    Tests that use it are marked ``engine``, leave the placement as they please and expect no
    particular one. Those that stop or kill a daemon start their own.
    """
    with LiveDaemon(*LIVE_ARGS) as daemon:
        yield daemon
