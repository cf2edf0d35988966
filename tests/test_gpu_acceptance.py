"""`scripts/gpu_host/acceptance.sh`: its jobs name tests that exist, its report what failed."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TESTS = """
import pytest
def test_good():
    print("measured 1.5")
def test_bad():
    assert 1 == 2, "one is not two"
@pytest.mark.skip(reason="no such thing here")
def test_absent():
    pass
"""


@pytest.fixture
def scripts(monkeypatch):
    """Imports a module of the folder."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "gpu_host"))
    return importlib.import_module


def test_every_test_of_every_job_exists(scripts):
    tests = [test for job in scripts("acceptance").JOBS.values() for test in job]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *tests],
        cwd=ROOT,
        env=os.environ | {"KTD_TEST_DEVICE": "cuda"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("lanes", [1, 2])
def test_jobs_run_side_by_side_and_what_failed_is_told(scripts, tmp_path, monkeypatch, lanes):
    """A failed test, one that was skipped, one that is interrupted, and one that is not started."""
    acceptance = scripts("acceptance")
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "test_long.py").write_text("import time\ndef test_long():\n    time.sleep(600)\n")
    jobs = {
        "some": (f"{tmp_path}/test_some.py",),
        "long": (f"{tmp_path}/test_long.py",),
        **({"late": (f"{tmp_path}/test_some.py",)} if lanes == 1 else {}),
    }
    monkeypatch.setattr(acceptance, "JOBS", jobs)
    arguments = [str(tmp_path / "out"), "--lanes", str(lanes)]
    seconds = str(acceptance.GRACE_SECONDS + 12)
    monkeypatch.setattr(sys, "argv", ["acceptance.py", *arguments, "--seconds", seconds])
    assert acceptance.main() == 1
    told = (tmp_path / "out" / "results.txt").read_text()
    assert "some: FAILED" in told
    assert "measured 1.5" in told
    assert "no such thing here" in told
    assert "one is not two" in told
    assert "long: INTERRUPTED" in told
    assert ("late: not started" in told) == (lanes == 1)
    kept = {path.name for path in (tmp_path / "out").iterdir()}
    assert kept == {"results.txt", "pytest.log", "daemons.tar.xz"}


def test_nothing_is_complained_of_where_all_passed(scripts, tmp_path, monkeypatch):
    acceptance = scripts("acceptance")
    (tmp_path / "test_good.py").write_text(TESTS.replace("1 == 2", "1 == 1"))
    test = f"{tmp_path}/test_good.py"
    jobs = {"good": (test,), "none": (f"{test}::test_absent",)}
    monkeypatch.setattr(acceptance, "JOBS", jobs)
    monkeypatch.setattr(sys, "argv", ["acceptance.py", str(tmp_path / "out")])
    assert acceptance.main() == 0
    told = (tmp_path / "out" / "results.txt").read_text()
    assert "good: passed" in told
    assert "none: skipped" in told


def test_a_job_whose_lane_has_died_is_not_forgotten(scripts, tmp_path, monkeypatch):
    acceptance = scripts("acceptance")
    (tmp_path / "test_good.py").write_text("def test_good():\n    pass\n")
    jobs = dict.fromkeys(("one", "two"), (f"{tmp_path}/test_good.py",))
    monkeypatch.setattr(acceptance, "JOBS", jobs)
    monkeypatch.setattr(acceptance.Run, "_command", lambda *_: ["/no/such/program"])
    monkeypatch.setattr(acceptance.threading, "excepthook", lambda _: None)
    arguments = ["acceptance.py", str(tmp_path / "out"), "--lanes", "1"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert acceptance.main() == 1
    told = (tmp_path / "out" / "results.txt").read_text()
    assert "one: KILLED" in told
    assert "two: not started" in told


def test_a_long_failure_keeps_its_ends(scripts, tmp_path):
    """And the whole report stays within what can be shown."""
    reports = scripts("acceptance_report")
    xml, log = tmp_path / "a.xml", tmp_path / "a.log"
    text = f"first {'x' * 20000} last"
    case = f'<testcase name="test_a" time="1"><failure>{text}</failure></testcase>'
    xml.write_text(f"<testsuites><testsuite>{case}</testsuite></testsuites>")
    log.write_text("")
    told = reports.report([reports.JobResult("a", log, xml, 1, 2.0)], characters=4000)
    assert len(told) < 4000
    assert "first x" in told
    assert told.endswith("x last")
