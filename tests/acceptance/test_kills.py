"""Kill -9 of any process: noticed, cleaned up, service and placement restored."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.acceptance.conftest import TOKENS
from tests.live import LiveDaemon

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def shared():
    # Not by a flag: placement flags on the command line beat the placement that was stored.
    with LiveDaemon(*TOKENS, env={"KTD_GPU_EXPERTS_RATIO": "0.25"}) as daemon:
        yield daemon


@pytest.fixture
def daemon(shared):
    """It serves, whatever the test before has left of it."""
    if shared.process.poll() is not None:
        shared.start()
    shared.wait_ready()
    return shared


def pids_named(daemon, part):
    """Living processes of the daemon whose command line contains ``part``."""
    found = []
    for pid in daemon.processes():
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if part in command:
            found.append(pid)
    return found


def experts_of(daemon):
    return [layer["gpu_experts"] for layer in daemon.ktd_json("placement", "get")["layers"]]


def place_at_random(daemon):
    """Leaves the first placement, so that a restored one can be told from a fresh one."""
    fresh, placed = (placed_by(daemon, strategy) for strategy in ("uniform", "random"))
    assert placed != fresh
    return placed


def placed_by(daemon, strategy):
    done = daemon.ktd("placement", "apply", "--strategy", strategy, "--yes")
    assert done.returncode == 0, done.stderr
    return experts_of(daemon)


def wait_until(condition, seconds, what):
    """Returns the seconds it took; a bound on hanging, not a performance figure."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"not within {seconds} s: {what}"
        time.sleep(0.02)
    return time.monotonic() - began


@pytest.mark.parametrize("victim", ["sglang::scheduler", "ktd.sgl.host"])
def test_a_killed_engine_process_is_noticed_and_everything_is_restored(daemon, victim):
    """Health says so at once, the old processes go, the new engine has the old placement."""
    placed, restarts = place_at_random(daemon), daemon.ktd_json("status")["restarts"]
    before = daemon.processes()
    (pid,) = pids_named(daemon, victim)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not daemon.healthy(), 10, "the death is noticed")
    daemon.wait_ready()
    left = (before & daemon.processes()) - {daemon.process.pid}
    assert not left, f"processes of the killed engine still live: {left}"
    assert experts_of(daemon) == placed
    answer = daemon.post("/v1/completions", {"model": "m", "prompt": "And", "max_tokens": 4})
    assert answer["usage"]["completion_tokens"] == 4
    assert daemon.ktd_json("status")["restarts"] == restarts + 1


def test_a_killed_daemon_takes_its_children_and_the_next_start_restores(daemon):
    """Nothing that serves stays behind, and the placement comes back."""
    placed = place_at_random(daemon)
    daemon.kill()
    assert not daemon.wait_gone(15), "children outlived a killed daemon by 15 s"
    daemon.start()
    assert experts_of(daemon) == placed


def test_sigterm_ends_everything(daemon):
    """No process, no socket; exit status 0."""
    assert daemon.stop(30) == 0
    assert not daemon.wait_gone(5)
    assert not daemon.socket.exists()
