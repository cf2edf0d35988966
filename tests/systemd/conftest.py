"""A booted systemd with ktd's unit in it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BOOT = Path(__file__).with_name("boot.sh")
UNIT = ROOT / "systemd/ktd.service"
CONFIG = """\
model = "/srv/model"
served-model-name = "ktd-tiny"
port = 31000
gpu-experts-ratio = 0.25
sglang-args = ["--max-total-tokens", "4096"]
"""


class Machine:
    """Commands inside the booted systemd."""

    def __init__(self, state: Path) -> None:
        self.state = state

    def run(self, *command: str, check: bool = True) -> str:
        """Runs a command inside and returns what it printed."""
        done = subprocess.run(
            [BOOT, "sh", self.state, *command],
            check=False,
            capture_output=True,
            text=True,
            timeout=400,
        )
        if check and done.returncode:
            raise AssertionError(f"{command}: {done.stdout}{done.stderr}\n{self.journal()}")
        return done.stdout

    def property(self, name: str) -> str:
        """One property of the unit."""
        return self.run("systemctl", "show", "-P", name, "ktd").strip()

    def journal(self) -> str:
        """The last of what the unit logged."""
        done = subprocess.run(
            [BOOT, "sh", self.state, "journalctl", "-u", "ktd", "-n", "60", "-o", "cat"],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.stdout[-6000:]


def _missing() -> str:
    """Why no systemd can be booted here, or an empty string."""
    if os.geteuid() != 0:
        return "needs root"
    if not Path("/lib/systemd/systemd").exists():
        return "no systemd is installed"
    effective = re.search(r"^CapEff:\s*(\w+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    if not effective or not int(effective.group(1), 16) >> 21 & 1:
        return "needs CAP_SYS_ADMIN"
    if any(shutil.which(tool) is None for tool in ("unshare", "nsenter", "findmnt", "pivot_root")):
        return "needs util-linux"
    done = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "true"], capture_output=True, check=False
    )
    return "" if done.returncode == 0 else "namespaces are not permitted here"


@pytest.fixture(scope="session")
def machine():
    """A systemd that runs ktd.service on the small model, in the repository's environment."""
    if reason := _missing():
        pytest.skip(f"no systemd can be booted: {reason}")
    state = Path(tempfile.mkdtemp(prefix="ktd-boot-"))
    units = state / "units"
    # The unit as it is shipped; what a site sets goes into a drop-in and into /etc/ktd.
    (units / "ktd.service.d").mkdir(parents=True)
    shutil.copy(UNIT, units)
    # An editable install finds the sources by their path, so they are bound where they lie.
    # So is the interpreter's library, whose own path may lead into a home that units cannot see.
    # A checkout below /tmp would be hidden by the unit's own /tmp, so they are bound there again.
    site = (
        f"[Service]\nEnvironment=PYTHONPATH={ROOT}/daemon:{ROOT}/tui "
        "LD_LIBRARY_PATH=/opt/ktd-base/lib\n"
        f"BindReadOnlyPaths={ROOT}/daemon {ROOT}/tui\n"
    )
    (units / "ktd.service.d/site.conf").write_text(site)
    wrong = UNIT.read_text().replace("serve --config", "serve --kt-nonsense 1 --config")
    (units / "ktd-wrong.service").write_text(wrong.replace("Directory=ktd", "Directory=ktd-wrong"))
    (units / "ktd-wrong.service.d").mkdir()
    (units / "ktd-wrong.service.d/site.conf").write_text(site)
    etc = state / "etc"
    etc.mkdir()
    (etc / "ktd.toml").write_text(CONFIG)
    environment = {
        **os.environ,
        "KTD_PYTHON": sys.prefix,
        "KTD_BIND": f"{ROOT}/models/ktd-tiny:/srv/model {etc}:/etc/ktd "
        f"{ROOT}/daemon:{ROOT}/daemon {ROOT}/tui:{ROOT}/tui",
    }
    done = subprocess.run(
        [BOOT, "up", state, units],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    try:
        if done.returncode:
            pytest.skip(f"no systemd can be booted: {done.stderr.strip()[-300:]}")
        yield Machine(state)
    finally:
        subprocess.run([BOOT, "down", state], capture_output=True, timeout=60, check=False)
        shutil.rmtree(state, ignore_errors=True)
