"""`scripts/install.sh`: what it says when the system lacks something, and what it leaves alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("bash", "cat", "cut", "dirname", "find", "flock", "sed", "sha256sum", "sort", "xargs")


def install(venv: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the script for an environment that does not exist yet."""
    return subprocess.run(
        ["bash", ROOT / "scripts/install.sh", venv, "constraints.txt", "dev"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_missing_python_is_named(tmp_path: Path) -> None:
    """A Python that is not there is one sentence, and nothing is made."""
    done = install(tmp_path / "venv", PYTHON="python-of-tomorrow")
    assert done.returncode == 1
    assert done.stderr.startswith("ktd: no Python 3.11 or newer was found")
    assert "python-of-tomorrow" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "venv").exists()


def test_missing_compiler_is_named_with_its_package(tmp_path: Path) -> None:
    """Without a compiler the packages are not fetched first."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found is not None, tool
        (tools / tool).symlink_to(found)
    done = install(tmp_path / "venv", PATH=str(tools), PYTHON=sys.executable, CXX="")
    assert done.returncode == 1
    assert "a C++20 compiler" in done.stderr
    assert "apt install g++" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "venv").exists()


def test_python_without_venv_is_named_with_its_package(tmp_path: Path) -> None:
    """Debian ships the venv module on its own; the sentence says which package."""
    bare = tmp_path / "python"
    bare.write_text(
        f'#!/bin/sh\ncase "$2" in "import venv"*) exit 1;; esac\nexec {sys.executable} "$@"\n'
    )
    bare.chmod(0o755)
    done = install(tmp_path / "venv", PYTHON=str(bare))
    assert done.returncode == 1
    assert "Python's venv module" in done.stderr
    assert "python3-venv" in done.stderr
    assert not (tmp_path / "venv").exists()
