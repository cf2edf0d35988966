"""`ktd record`: what it prints, for people, scripts and programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tests.cli.running import ktd

if TYPE_CHECKING:
    import pytest

    from tests.rpc.fake_daemon import FakeDaemon


async def test_a_dump_prints_the_path_alone_on_standard_output(
    daemon: FakeDaemon, tmp_path: Path
) -> None:
    """So that `$(ktd record dump)` is the file."""
    folder = str(tmp_path / "traces")
    started = await ktd(
        "record", "start", "--mode", "per_token", "--dir", folder, socket=daemon.socket
    )
    assert started.code == 0
    assert "recording, mode per_token" in started.out
    daemon.recorder.run(12, tokens=345)
    dumped = await ktd("record", "dump", socket=daemon.socket)
    assert dumped.code == 0
    (path,) = dumped.out.splitlines()
    assert Path(path).parent == Path(folder)
    assert Path(path).read_text() == "recorded"
    assert "12 passes, 345 tokens in mode per_token" in dumped.err


async def test_a_folder_is_meant_as_seen_from_where_the_command_runs(
    daemon: FakeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon's own folder is another one."""
    monkeypatch.chdir(tmp_path)
    done = await ktd("record", "start", "--dir", "some/where", "--json", socket=daemon.socket)
    assert done.json["directory"] == str(tmp_path / "some/where")


async def test_json_of_every_action(daemon: FakeDaemon) -> None:
    """Modes as they are written on the command line; a dump has its paths and what they hold."""
    before = (await ktd("record", "status", "--json", socket=daemon.socket)).json
    assert (before["recording"], before["mode"]) == (False, "")
    await ktd("record", "start", "--gpu-masks", "--buffer-size", "50", socket=daemon.socket)
    assert daemon.recorder.started == [{"mode": "stat", "buffer_passes": 50}]
    daemon.recorder.run(60, dropped=10)
    now = (await ktd("record", "status", "--json", socket=daemon.socket)).json
    assert (now["mode"], now["passes"], now["gpu_masks"]) == ("stat", 60, True)
    stopped = (await ktd("record", "stop", "--json", socket=daemon.socket)).json
    assert stopped["recording"] is False
    dumped = (await ktd("record", "dump", "--json", socket=daemon.socket)).json
    assert len(dumped["paths"]) == 1
    assert dumped["written"]["dropped_passes"] == 10
    assert dumped["written"]["mode"] == "stat"


async def test_what_was_dropped_is_said_to_people(daemon: FakeDaemon) -> None:
    """In the status and beside a dump."""
    await ktd("record", "start", socket=daemon.socket)
    daemon.recorder.run(60, dropped=10)
    assert "note: 10 of 60 passes" in (await ktd("record", "status", socket=daemon.socket)).out
    assert "note: 10 of 60 passes" in (await ktd("record", "dump", socket=daemon.socket)).err


async def test_refusals_are_one_sentence_with_their_exit_code(daemon: FakeDaemon) -> None:
    """Refused: 3; a wrong argument: 2."""
    stopped = await ktd("record", "stop", socket=daemon.socket)
    assert (stopped.code, stopped.err.count("\n")) == (3, 1)
    assert (await ktd("record", "start", "--buffer-size", "0", socket=daemon.socket)).code == 2
    assert (await ktd("record", "start", "--mode", "all", socket=daemon.socket)).code == 2
    assert "Nothing has been recorded" in (await ktd("record", "status", socket=daemon.socket)).out
