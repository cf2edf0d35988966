"""The unit file, read by systemd's own tools."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from ktd.cli.exit_codes import ExitCode
from tests.systemd.conftest import UNIT

needs_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


@needs_analyze
def test_systemd_has_nothing_to_say_about_the_unit(tmp_path):
    """verify exits with 0 even for unknown keys, so its standard error must be empty too."""
    unit = tmp_path / "ktd.service"
    # The interpreter of an installation is not here; everything else is checked as it is.
    unit.write_text(UNIT.read_text().replace("/opt/ktd/bin/python", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


@needs_analyze
def test_an_unknown_key_would_be_noticed(tmp_path):
    """The check above can fail."""
    unit = tmp_path / "ktd.service"
    text = UNIT.read_text().replace("/opt/ktd/bin/python", "/bin/true")
    unit.write_text(text.replace("KillMode=", "KillMood="))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], check=False, capture_output=True, text=True
    )
    assert "KillMood" in done.stderr


@needs_analyze
def test_the_exposure_is_low():
    """systemd's own score, of 100; devices and compiled code cost some."""
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--threshold=40", UNIT],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-400:]


def test_hopeless_failures_are_not_repeated():
    """The exit codes for a wrong configuration and a refused model are those of the table."""
    codes = f"RestartPreventExitStatus={int(ExitCode.USAGE)} {int(ExitCode.REFUSED)}"
    assert codes in UNIT.read_text().splitlines()
