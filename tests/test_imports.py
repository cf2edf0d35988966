"""Who may import whom: the contracts of pyproject.toml hold, and each of them can fail."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
    "contracts"
]

# An editable installation would lead the linter to this checkout instead of the copy under test.
LINT = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if not type(f).__module__.startswith("_editable_skbc")]
sys.path[:0] = ["daemon", "tui"]
from importlinter.cli import lint_imports_command
lint_imports_command()
"""


@dataclass(frozen=True)
class Plant:
    """One forbidden import: the file it is put into, and the line."""

    file: str
    line: str


PLANTS = {
    "config": Plant("daemon/ktd/http/planted.py", "import ktd.config"),
    "model": Plant("daemon/ktd/placement/planted.py", "import ktd.model"),
    "placement": Plant("daemon/ktd/engine/planted.py", "import ktd.placement"),
    "stats": Plant("daemon/ktd/placement/planted.py", "import ktd.stats"),
    "policy": Plant("daemon/ktd/placement/planted.py", "import ktd.policy"),
    "simulate": Plant("daemon/ktd/app/planted.py", "import ktd.simulate"),
    "engine": Plant("tui/ktd_tui/planted.py", "import ktd.engine"),
    "experts": Plant("daemon/ktd/app.py", "import ktd.experts"),
    "shapes": Plant("daemon/ktd/placement/planted.py", "import ktd.shapes"),
    "cuda": Plant("daemon/ktd/experts/planted.py", "import ktd.cuda"),
    "sgl": Plant("daemon/ktd/app.py", "import ktd.sgl"),
    "services": Plant("daemon/ktd/cli/planted.py", "import ktd.rpc"),
    "app": Plant("daemon/ktd/cli/planted.py", "import ktd.app"),
    "bench": Plant("daemon/ktd/http/planted.py", "import ktd.bench"),
    "client": Plant("daemon/ktd/rpc/planted.py", "import ktd.client"),
    "cli": Plant("daemon/ktd/config/planted.py", "import ktd.cli"),
    "v1": Plant("daemon/ktd/stats/planted.py", "from ktd.v1 import stats_pb2"),
    "internal": Plant("daemon/ktd/rpc/planted.py", "from ktd.internal.v1 import control_pb2"),
    "files": Plant("daemon/ktd/rpc/planted.py", "import ktd.rankfile"),
    "torch": Plant("daemon/ktd/model/planted.py", "def late():\n    import torch"),
    "sglang": Plant("daemon/ktd/experts/planted.py", "import sglang.srt"),
    "grpc": Plant("daemon/ktd/placement/planted.py", "import grpc.aio"),
    "textual": Plant("daemon/ktd/cli/planted.py", "import textual"),
    "values": Plant("daemon/ktd/errors.py", "import structlog"),
    "monitor": Plant("tui/ktd_tui/planted.py", "import ktd.errors"),
}


def lint(tree: Path, *contracts: str) -> tuple[int, str]:
    """Runs the linter on a tree; returns its exit status and what it printed."""
    flags = [flag for contract in contracts for flag in ("--contract", contract)]
    done = subprocess.run(
        [sys.executable, "-c", LINT, "--no-cache", "--no-logo", *flags],
        cwd=tree,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(name="tree")
def tree_(tmp_path: Path) -> Path:
    """A copy of the packages and their contracts."""
    leave = shutil.ignore_patterns("__pycache__", "*.so")
    shutil.copytree(ROOT / "daemon", tmp_path / "daemon", ignore=leave)
    shutil.copytree(ROOT / "tui", tmp_path / "tui", ignore=leave)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_all_contracts_hold(tree: Path) -> None:
    """The packages as they are break no contract."""
    status, output = lint(tree)
    assert status == 0, output
    assert f"{len(CONTRACTS)} kept, 0 broken" in output


def test_every_contract_has_a_plant() -> None:
    """No contract goes unproven."""
    assert set(PLANTS) == {contract["id"] for contract in CONTRACTS}


@pytest.mark.parametrize("contract", PLANTS)
def test_a_planted_import_breaks_its_contract(tree: Path, contract: str) -> None:
    """Each contract refuses the import that it exists to refuse."""
    plant = PLANTS[contract]
    with (tree / plant.file).open("a") as file:
        file.write(f"\n{plant.line}\n")
    status, output = lint(tree, contract)
    assert status == 1, output
    assert "0 kept, 1 broken" in output


def test_every_package_has_a_contract() -> None:
    """A package that is added to ktd is added to the contracts."""
    free = {"__init__", "__main__", "errors", "version", "py"}
    packages = {path.name.split(".")[0] for path in (ROOT / "daemon/ktd").iterdir()}
    named = {
        module.split(".")[1]
        for contract in CONTRACTS
        for module in contract.get("protected_modules", [])
        if module.startswith("ktd.")
    }
    assert packages - {"__pycache__"} - free == named
