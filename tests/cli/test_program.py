"""The command line as a whole: errors, help, exit codes, pipes, and what is not imported."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from ktd.cli.commands import COMMANDS
from tests.cli.running import environment, ktd, ktd_here

if TYPE_CHECKING:
    from pathlib import Path

    from tests.rpc.fake_daemon import FakeDaemon

CLIENT_COMMANDS = [
    ("status",),
    ("placement", "get"),
    ("placement", "plan", "--strategy", "uniform"),
    ("placement", "apply", "--strategy", "uniform"),
    ("placement", "undo"),
    ("placement", "history"),
    ("stats",),
    ("watch",),
    ("chat", "hello"),
    ("top", "--once", "--json"),
]


@pytest.mark.parametrize("command", CLIENT_COMMANDS, ids=" ".join)
def test_no_daemon_is_one_sentence_and_exit_code_4(
    command: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every client command says where it looked and what to do."""
    result = ktd_here(capsys, "--socket", str(tmp_path / "none.sock"), *command)
    assert result.code == 4
    assert result.out == ""
    assert result.err.count("\n") == 1
    assert result.err.startswith("ktd: ")
    assert "none.sock" in result.err
    assert "ktd serve" in result.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["statu"], "ktd: there is no command 'statu'; did you mean 'status'?"),
        (["xyz"], "ktd: there is no command 'xyz'; see 'ktd --help'"),
        (["status", "--bogus"], "ktd: unrecognized arguments: --bogus; see 'ktd status --help'"),
        (
            ["placement", "get", "extra"],
            "ktd: unrecognized arguments: extra; see 'ktd placement get --help'",
        ),
        (
            ["placement"],
            "ktd: the following arguments are required: ACTION; see 'ktd placement --help'",
        ),
        (
            ["watch", "--interval", "-1"],
            "ktd: argument --interval: -1 is not above 0; see 'ktd watch --help'",
        ),
        (
            ["watch", "--interval", "soon"],
            "ktd: argument --interval: invalid number value: 'soon'; see 'ktd watch --help'",
        ),
        (["--socket"], "ktd: argument --socket: expected one argument; see 'ktd --help'"),
    ],
)
def test_a_wrong_command_line_is_one_sentence_and_exit_code_2(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sentence names what is wrong and where to read on."""
    result = ktd_here(capsys, *arguments)
    assert (result.code, result.out, result.err) == (2, "", sentence + "\n")


def test_a_goal_is_needed_and_only_one(capsys: pytest.CaptureFixture[str]) -> None:
    """`apply` refuses to guess."""
    none = ktd_here(capsys, "placement", "apply")
    both = ktd_here(capsys, "placement", "apply", "--strategy", "uniform", "--file", "x")
    assert none.code == both.code == 2
    assert "required" in none.err
    assert "not allowed with" in both.err


@pytest.mark.parametrize(
    "name", sorted(set(COMMANDS) - {"serve", "config", "bench", "make-model", "simulate"})
)
def test_help_of_every_command_has_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` works without a daemon, and shows how the command is used."""
    result = ktd_here(capsys, name, "--help")
    assert result.code == 0
    assert "examples:" in result.out
    assert "--socket" in result.out


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """`ktd` alone lists its commands, and is not a success for a script."""
    result = ktd_here(capsys)
    assert result.code == 2
    assert all(name in result.out for name in ("serve", "status", "placement", "doctor"))


def test_version_flag_prints_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    """`ktd --version` needs nothing."""
    result = ktd_here(capsys, "--version")
    assert result.code == 0
    assert result.out.startswith("ktd ")


async def test_socket_is_accepted_before_and_after_the_command(daemon: FakeDaemon) -> None:
    """`--socket` works in every place, and beats KTD_SOCKET."""
    socket = str(daemon.socket)
    for arguments in (
        ("--socket", socket, "placement", "get", "--json"),
        ("placement", "--socket", socket, "get", "--json"),
        ("placement", "get", "--socket", socket, "--json"),
        (f"--socket={socket}", "--json", "placement", "get"),
    ):
        result = await ktd(*arguments, KTD_SOCKET="/nowhere/ktd.sock")
        assert result.code == 0, (arguments, result.err)
        assert result.json["revision"] == 1


def test_a_socket_path_that_is_too_long_is_refused_by_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Unix sockets have short paths; the sentence says so."""
    result = ktd_here(capsys, "status", "--socket", "/tmp/" + "x" * 200)
    assert result.code == 4
    assert "107 bytes" in result.err


async def test_commands_import_neither_torch_nor_sglang_nor_textual(daemon: FakeDaemon) -> None:
    """A client machine needs none of them, and `ktd status` has no time for them."""
    code = (
        "import json, sys\n"
        "from ktd.cli.program import run\n"
        "codes = [run(line.split()) for line in ('status', 'placement get --json', 'stats --json',"
        " 'doctor --json', 'version', 'top --once --json', 'watch -n 1')]\n"
        "heavy = {'torch', 'sglang', 'textual', 'transformers', 'numpy'} & set(sys.modules)\n"
        "sys.stderr.write(json.dumps([codes, sorted(heavy)]))\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        code,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env=environment(KTD_SOCKET=str(daemon.socket)),
    )
    _, err = await process.communicate()
    codes, heavy = json.loads(err)
    assert heavy == []
    # doctor, the fourth, may find a problem on this host.
    assert [*codes[:3], *codes[4:]] == [0] * 6


async def test_help_imports_no_grpc() -> None:
    """The list of commands costs nothing."""
    code = (
        "import sys\n"
        "from ktd.cli.program import run\n"
        "run(['--help'])\n"
        "sys.stderr.write(repr('grpc' in sys.modules))\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        code,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env=environment(),
    )
    _, err = await process.communicate()
    assert err.decode() == "False"


async def test_a_reader_that_leaves_is_no_error(daemon: FakeDaemon) -> None:
    """`ktd watch | head -1` ends quietly."""
    command = f"{sys.executable} -m ktd watch --interval 0.1 | head -n 1; echo ${{PIPESTATUS[0]}}"
    process = await asyncio.create_subprocess_exec(
        "bash",
        "-c",
        command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment(KTD_SOCKET=str(daemon.socket)),
    )
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert err == b""
    assert out.decode().splitlines()[-1] == "0"


async def test_ctrl_c_ends_a_command_with_130_and_silence(daemon: FakeDaemon) -> None:
    """An interrupted `ktd watch` shows no traceback."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "ktd",
        "watch",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment(KTD_SOCKET=str(daemon.socket)),
    )
    assert process.stdout is not None
    await process.stdout.readline()
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(60):
        _, err = await process.communicate()
    assert process.returncode == 130
    assert err == b""


_PRODUCT = """
import os, sys
from ktd.cli.program import run
run(["--help"])
import numpy as np
np.tensordot(np.ones(16), np.ones((16, 48, 512)), axes=1)
print(len(os.listdir("/proc/self/task")), file=sys.stderr)
"""


@pytest.mark.skipif(os.cpu_count() == 1, reason="numpy starts no threads on one core")
@pytest.mark.parametrize(
    ("chosen", "threads"), [({}, 1), ({"OPENBLAS_NUM_THREADS": "2"}, 2)], ids=["default", "asked"]
)
def test_numpy_takes_no_cores_from_the_expert_pool(chosen: dict[str, str], threads: int) -> None:
    """A policy's products are made in the thread that wants them, unless somebody asks for more."""
    kept = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", _PRODUCT],
        env=kept | chosen,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert int(done.stderr) == threads
