"""What the pages say is what the program does: links, flags, commands, exit codes, examples."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ktd.cli.commands import COMMANDS
from ktd.cli.exit_codes import ExitCode
from ktd.config.legacy import LEGACY_FLAGS, REFUSED_FLAGS
from ktd.config.options import BY_FLAG
from tests.live import LiveDaemon

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])

LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
CODE = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)
KTD_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
COMMAND = re.compile(r"^\s*(?:\$ )?ktd ([a-z-]+)", re.MULTILINE)
# Flags of client commands and of SGLang that the pages use; each is tested where it is handled.
OTHER_FLAGS = {
    *("--against", "--any", "--file", "--help", "--interval", "--json", "--once", "--strategy"),
    *("--shape", "--trace", "--yes", "--now", "--accept", "--check", "--system"),
    *("--chunked-prefill-size", "--max-total-tokens"),
}


def names_of(pages: list[Path]) -> list[str]:
    """Pages as test ids."""
    return [str(page.relative_to(ROOT)) for page in pages]


@pytest.mark.parametrize("page", PAGES, ids=names_of(PAGES))
def test_links_lead_to_files(page: Path) -> None:
    """A relative link names a file of the repository."""
    targets = [link for link in LINK.findall(page.read_text()) if "://" not in link]
    assert [link for link in targets if not (page.parent / link).exists()] == []


def test_readme_names_only_commands_that_exist() -> None:
    """Each `ktd …` of a code block is a command."""
    blocks = "\n".join(code for _, code in CODE.findall(README))
    assert set(COMMAND.findall(blocks)) - set(COMMANDS) == set()


def test_readme_names_only_flags_that_exist() -> None:
    """Each flag in the README is an option of ktd, of its clients, or one of SGLang's."""
    known = {*BY_FLAG, *LEGACY_FLAGS, *REFUSED_FLAGS, *OTHER_FLAGS}
    assert set(KTD_FLAG.findall(README)) - known == set()


def test_readme_has_the_exit_codes() -> None:
    """The table of exit codes is complete and has no others."""
    rows = {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)}
    assert rows == {int(code) for code in ExitCode}


def test_configuration_page_is_what_the_tables_say() -> None:
    """docs/configuration.md is the output of its script."""
    page = subprocess.run(
        [sys.executable, ROOT / "scripts/configuration_page.py"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert (ROOT / "docs/configuration.md").read_text() == page


@pytest.mark.engine
def test_python_example_of_the_readme_runs(live_daemon: LiveDaemon) -> None:
    """The example is run as it stands, against a real daemon."""
    (example,) = [code for language, code in CODE.findall(README) if language == "python"]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", example],
        env=os.environ | {"KTD_SOCKET": str(live_daemon.socket)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
