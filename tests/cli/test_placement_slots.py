"""`ktd placement apply --restart` and `fit`: what they print, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cli.on_terminal import on_terminal
from tests.cli.running import ktd

if TYPE_CHECKING:
    from tests.rpc.fake_daemon import FakeDaemon

MODEL = Path(__file__).parents[2] / "models/ktd-tiny"


async def test_apply_with_restart_waits_until_the_engine_serves(daemon: FakeDaemon) -> None:
    """And prints the placement that it began with."""
    daemon.traffic.decode(200)
    apply = ("placement", "apply", "--restart", "--yes", "--drain", "3")
    result = await ktd(*apply, "--strategy", "frequency", socket=daemon.socket)
    assert result.code == 0
    assert "the engine was started again with them and serves; revision 2" in result.out
    assert daemon.engine.drains == [3.0]
    value = (await ktd(*apply, "--strategy", "uniform", "--json", socket=daemon.socket)).json
    assert [layer["slots"] for layer in value["layers"]] == [2, 2, 2, 2]
    assert value["revision"] == 3


async def test_apply_with_restart_asks_on_a_terminal(daemon: FakeDaemon) -> None:
    """No is no: nothing is drained."""
    daemon.traffic.decode(200)
    arguments = ("placement", "apply", "--strategy", "front-loading", "--restart")
    async with on_terminal(*arguments, KTD_SOCKET=str(daemon.socket)) as terminal:
        assert "A restart with the slots" in await terminal.shows("Drain and restart the engine")
        terminal.type("n\n")
        assert await terminal.end() == 1
    assert daemon.engine.drains == []


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("--file", "-", "--restart"), 2, "a file says nothing of slots"),
        (("--strategy", "random", "--drain", "5"), 2, "--drain needs --restart"),
        (("--strategy", "random", "--restart", "--drain", "-1"), 2, "-1 is below 0"),
        (("--strategy", "random", "--restart", "--drain", "inf"), 2, "inf is no finite number"),
        (("--strategy", "random", "--restart", "--drain", "x"), 2, "invalid number value: 'x'"),
        (("--strategy", "magic", "--restart", "--yes"), 2, "no placement strategy 'magic'"),
    ],
)
async def test_restart_is_refused_in_one_sentence(
    daemon: FakeDaemon, arguments: tuple[str, ...], code: int, sentence: str
) -> None:
    """Before anything is drained."""
    target = json.dumps({"layers": [{"layer": 2, "gpu_experts": [1, 5]}]})
    result = await ktd("placement", "apply", *arguments, socket=daemon.socket, stdin=target)
    assert result.code == code
    assert sentence in result.err
    assert result.err.count("\n") == 1
    assert daemon.engine.drains == []


async def test_restart_can_be_checked_only(daemon: FakeDaemon) -> None:
    """What it would give, in words and for programs."""
    check = ("placement", "apply", "--strategy", "random", "--restart", "--dry-run")
    assert "nothing was changed" in (await ktd(*check, socket=daemon.socket)).out
    value = (await ktd(*check, "--json", socket=daemon.socket)).json
    assert sum(layer["slots"] for layer in value["layers"]) == 8
    assert daemon.engine.drains == []


async def test_fit_of_the_running_engine(daemon: FakeDaemon) -> None:
    """The daemon's answer, for people and for programs."""
    text = (await ktd("placement", "fit", socket=daemon.socket)).out
    assert text.startswith("16 of 32 experts fit into GPU slots (50.0 %)")
    assert "--kt-gpu-experts-ratio 0.5, or --kt-num-gpu-experts 4" in text
    assert "- 1.0 GiB of host memory are free." in text
    value = (await ktd("placement", "fit", "--json", socket=daemon.socket)).json
    assert (value["slots"], value["largest_slots"], value["total_experts"]) == (16, 32, 32)


async def test_fit_of_a_folder_needs_no_daemon(tmp_path: Path) -> None:
    """The same fields; options about the start count."""
    nowhere = tmp_path / "none.sock"
    fit = ("placement", "fit", str(MODEL), "--json")
    small = (await ktd(*fit, socket=nowhere)).json
    assert (small["slots"], small["total_experts"], small["num_layers"]) == (48, 192, 6)
    large = (await ktd(*fit, "--max-total-tokens", "1000000", socket=nowhere)).json
    assert large["room_bytes"] < small["room_bytes"]
    assert "holds 1000000 tokens" in " ".join(large["assumptions"])
    mapped = (await ktd(*fit, "--host-memory", "mmap", socket=nowhere)).json
    assert "used from the page cache" in mapped["assumptions"][-2]
    four = (await ktd(*fit, "--cpu-expert-format", "int4", socket=nowhere)).json
    assert four["expert_bytes"] == small["expert_bytes"]  # slots hold the values in bf16
    alike = (await ktd(*fit, "--cpu-expert-format", "checkpoint", socket=nowhere)).json
    taken = [" ".join(value["assumptions"]) for value in (four, alike)]
    assert ["takes 5.1 MiB experts" in text for text in taken] == [True, False]
    assert ["takes 18.0 MiB experts" in text for text in taken] == [False, True]


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("--tp", "2"), 2, "--tp needs MODEL"),
        (("--chunked-prefill-size", "9"), 2, "--chunked-prefill-size needs MODEL"),
        (("--host-memory", "mmap"), 2, "--host-memory needs MODEL"),
        (("--cpu-expert-format", "int8"), 2, "--cpu-expert-format needs MODEL"),
        ((str(MODEL), "--cpu-expert-format", "int5"), 2, "invalid choice: 'int5'"),
        (("/no/such/folder",), 3, "There is no model folder /no/such/folder"),
        (("some/model",), 3, "some/model is not a folder here"),
        ((str(MODEL), "--device", "cuda"), 3, "--device cuda needs an NVIDIA GPU"),
    ],
)
async def test_fit_is_refused_in_one_sentence(
    tmp_path: Path, arguments: tuple[str, ...], code: int, sentence: str
) -> None:
    """What is wrong, and what to do."""
    result = await ktd("placement", "fit", *arguments, socket=tmp_path / "none.sock")
    assert result.code == code
    assert sentence in result.err
    assert result.err.count("\n") == 1
