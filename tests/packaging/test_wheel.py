"""The wheel, built as a user's pip builds it, in an environment without torch and SGLang."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path

import pytest

from ktd.cli.exit_codes import ExitCode
from ktd.version import __version__
from tests.live import ROOT

pytestmark = pytest.mark.packaging

# The front package of each group; what they bring with them follows.
ENGINE_ONLY = ("torch", "sglang", "triton", "transformers")


@dataclass(frozen=True)
class Distribution:
    """What ``python -m build`` made."""

    sdist: Path
    wheel: Path


@dataclass(frozen=True)
class Installation:
    """An environment that holds the wheel and what it depends on, and nothing else."""

    bin: Path
    home: Path

    def run(self, program: str, *args: str) -> subprocess.CompletedProcess[str]:
        """Runs a program of the environment as a user would who has no checkout."""
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("KTD_", "PYTHON", "XDG_"))
        }
        return subprocess.run(
            [self.bin / program, *args],
            cwd=self.home,
            env=environment
            | {"HOME": str(self.home), "KTD_SOCKET": str(self.home / "absent.sock")},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def python(self, code: str) -> str:
        """Runs Python code and returns what it prints."""
        done = self.run("python", "-W", "error", "-c", code)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@pytest.fixture(name="distribution", scope="module")
def distribution_(tmp_path_factory: pytest.TempPathFactory) -> Distribution:
    """The source distribution, and the wheel built from it, in isolation."""
    out = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--outdir", out, ROOT],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    (sdist,) = out.glob("*.tar.gz")
    (wheel,) = out.glob("*.whl")
    return Distribution(sdist, wheel)


@pytest.fixture(name="installed", scope="module")
def installed_(
    distribution: Distribution, tmp_path_factory: pytest.TempPathFactory
) -> Installation:
    """The wheel in an environment that was empty."""
    home = tmp_path_factory.mktemp("user")
    subprocess.run([sys.executable, "-m", "venv", home / "env"], check=True)
    binaries = home / "env" / "bin"
    done = subprocess.run(
        [
            *(binaries / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check"),
            *("-c", ROOT / "constraints.txt", distribution.wheel),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return Installation(binaries, home)


def test_sdist_holds_what_a_build_needs_and_nothing_else(distribution: Distribution) -> None:
    """Sources, licence and interface definitions are in it; environments and builds are not."""
    with tarfile.open(distribution.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "LICENSE",
        "README.md",
        "pyproject.toml",
        "csrc/CMakeLists.txt",
        "daemon/ktd/__main__.py",
        "proto/ktd/v1/engine.proto",
        "tui/ktd_tui/__main__.py",
    } <= names
    tops = {name.partition("/")[0] for name in names}
    assert not tops & {".git", ".venv", ".venv-0.5.17", ".work", "build", "dist"}
    assert not [name for name in names if name.endswith((".so", ".pyc", ".whl"))]


def test_wheel_holds_both_packages_and_the_native_module(distribution: Distribution) -> None:
    """One wheel carries daemon, monitor, kernels and entry points, and no tests."""
    with zipfile.ZipFile(distribution.wheel) as archive:
        names = archive.namelist()
        (points,) = [name for name in names if name.endswith("entry_points.txt")]
        entry_points = archive.read(points).decode()
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {
        "ktd",
        "ktd_tui",
    }
    assert [name for name in names if name.startswith("ktd/experts/_native.")]
    assert "ktd/py.typed" in names
    assert [name for name in names if name.endswith("licenses/LICENSE")]
    for group in ("console_scripts", "sglang.srt.plugins", "sglang.srt.platforms"):
        assert f"[{group}]" in entry_points


def test_wheel_metadata_names_engine_and_tools_as_extras(distribution: Distribution) -> None:
    """A client machine installs neither torch nor SGLang nor test tools."""
    with zipfile.ZipFile(distribution.wheel) as archive:
        (path,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
        metadata = Parser().parsestr(archive.read(path).decode())
    assert metadata["Version"] == __version__
    assert metadata["License-Expression"] == "Apache-2.0"
    plain = [need for need in metadata.get_all("Requires-Dist", []) if "extra ==" not in need]
    assert not [need for need in plain if need.startswith((*ENGINE_ONLY, "pytest", "mypy"))]


def test_environment_has_no_engine(installed: Installation) -> None:
    """What follows really runs without torch and SGLang."""
    present = installed.python(
        "import importlib.util as u; "
        f"print([name for name in {ENGINE_ONLY!r} if u.find_spec(name)])"
    )
    assert present == "[]"


def test_every_module_of_the_client_side_can_be_imported(installed: Installation) -> None:
    """Only ktd.sgl, ktd.cuda, parts of ktd.experts and what times them need the engine."""
    failed = installed.python(
        "import importlib, pkgutil, ktd, ktd_tui\n"
        "skip = ('ktd.sgl', 'ktd.experts', 'ktd.cuda', 'ktd.bench.kernels')\n"
        "for package in (ktd, ktd_tui):\n"
        "    for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.',\n"
        "                                        onerror=lambda name: None):\n"
        "        if not module.name.startswith(skip) and not module.name.endswith('__main__'):\n"
        "            try:\n"
        "                importlib.import_module(module.name)\n"
        "            except ImportError as error:\n"
        "                print(module.name, error)\n"
    )
    assert failed == ""


def test_native_module_lists_the_isas_of_this_cpu(installed: Installation) -> None:
    """The compiled kernels load without torch; the scalar ones run everywhere."""
    isas = installed.python(
        "from ktd.experts import _native; print([isa['name'] for isa in _native.isas()])"
    )
    assert "scalar" in isas


def test_version_as_json(installed: Installation) -> None:
    """Programs can ask what is installed."""
    done = installed.run("ktd", "version", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ktd"] == __version__


def test_doctor_reports_the_missing_engine(installed: Installation) -> None:
    """Without an engine, doctor says so instead of failing."""
    done = installed.run("ktd", "doctor", "--json")
    report = json.loads(done.stdout)
    assert "sglang" in json.dumps(report).lower()
    assert "Traceback" not in done.stderr


def test_status_without_a_daemon_is_one_sentence(installed: Installation) -> None:
    """A client that meets no daemon names the socket and ends with the code for that."""
    done = installed.run("ktd", "status")
    assert done.returncode == ExitCode.UNREACHABLE
    assert "absent.sock" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_monitor_without_a_daemon_is_one_sentence(installed: Installation) -> None:
    """The monitor's one frame fails as the other clients do."""
    done = installed.run("ktd-tui", "--once", "--json")
    assert done.returncode == ExitCode.UNREACHABLE
    assert "Traceback" not in done.stdout + done.stderr
    assert "absent.sock" in done.stdout + done.stderr


def test_serve_without_the_engine_says_what_to_install(installed: Installation) -> None:
    """A machine that has only the client cannot serve, and is told how it could."""
    done = installed.run("ktd", "serve", str(ROOT / "models" / "ktd-tiny"), "--port", "0")
    assert done.returncode != 0
    assert "ktd[engine]" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
