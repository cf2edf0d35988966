"""The shape of the repository: file sizes, names, and what must never be committed."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAX_LINES = 400
SOURCES = {".py", ".cpp", ".h", ".hpp", ".cu"}
GENERATED = ("daemon/ktd/v1/", "daemon/ktd/internal/")
GRAB_BAGS = {"utils", "util", "common", "helpers", "misc"}
BINARY = {".safetensors", ".npz", ".png", ".binpb"}
QUOTED = ("models/text/",)  # other people's texts, which speak of their own machines

# Spelled in pieces, so that this file does not hold what it looks for.
REGISTRY_HOSTS = (
    "pypi" + ".org",
    "pythonhosted" + ".org",
    "registry.npmjs" + ".org",
    "deb.debian" + ".org",
    "download.pytorch" + ".org",
)
MACHINE_PATH = re.compile(r"(?<![\w.$}/-])/(?:work|root|home/\w+|Users/\w+)/[\w.]")


def committed_files() -> list[Path]:
    """Files of the index that still exist."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def sources() -> list[Path]:
    """Hand-written Python and C++."""
    return [
        path
        for path in committed_files()
        if path.suffix in SOURCES and not str(path.relative_to(ROOT)).startswith(GENERATED)
    ]


def grab_bags(paths: list[Path]) -> list[Path]:
    """Files whose name says nothing about what is in them."""
    return [path for path in paths if path.stem.lower() in GRAB_BAGS]


def too_long(paths: list[Path]) -> list[str]:
    """Files over the limit, with their lengths."""
    lengths = {path: len(path.read_bytes().splitlines()) for path in paths}
    return [f"{path} has {lines} lines" for path, lines in lengths.items() if lines > MAX_LINES]


def leaks(paths: list[Path]) -> list[str]:
    """Lines that name a package registry or a path of the machine they were written on."""
    found = []
    for path in paths:
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if MACHINE_PATH.search(line) or any(host in line for host in REGISTRY_HOSTS):
                found.append(f"{path}:{number}: {line.strip()[:120]}")
    return found


def test_no_source_file_is_longer_than_the_limit() -> None:
    """One noun per file stays true only while files are short."""
    assert too_long(sources()) == []


def test_no_file_is_a_grab_bag() -> None:
    """A file is named after the concept in it."""
    assert grab_bags(sources()) == []


def test_nothing_committed_knows_its_machine() -> None:
    """A checkout works anywhere: no absolute paths, no package registries."""
    texts = [
        path
        for path in committed_files()
        if path.suffix not in BINARY and not str(path.relative_to(ROOT)).startswith(QUOTED)
    ]
    assert leaks(texts) == []


def test_the_checks_find_what_they_look_for(tmp_path: Path) -> None:
    """Each check above fails on a planted offence."""
    long = tmp_path / "long.py"
    long.write_text("x = 1\n" * (MAX_LINES + 1))
    bag = tmp_path / "utils.py"
    bag.write_text("")
    path = tmp_path / "path.py"
    path.write_text(f"# {REGISTRY_HOSTS[0]}\nA = '/wo" + "rk/main/x'\nB = '/ho" + "me/ann/x'\n")
    assert too_long([long, bag]) == [f"{long} has {MAX_LINES + 1} lines"]
    assert grab_bags([long, bag]) == [bag]
    assert [line.split(": ")[0] for line in leaks([path])] == [f"{path}:{n}" for n in (1, 2, 3)]


@pytest.mark.parametrize(
    "line", ["see tests/work/a", "https://host/work/x", "$HOME/work/x", "./root/x"]
)
def test_ordinary_paths_are_no_leak(tmp_path: Path, line: str) -> None:
    """Relative paths and addresses may hold the same words."""
    file = tmp_path / "file.txt"
    file.write_text(line)
    assert leaks([file]) == []
