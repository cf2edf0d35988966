"""`ktd placement` against a daemon: what it prints, what it changes, what it refuses."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from ktd.cli.placement_json import parse_target
from ktd.client import KtdClient
from ktd.errors import InvalidArgument
from tests.cli.on_terminal import on_terminal
from tests.cli.running import ktd
from tests.rpc.fake_daemon import fake_daemon

if TYPE_CHECKING:
    from pathlib import Path

    from tests.rpc.fake_daemon import FakeDaemon


async def test_get_prints_the_documented_json(daemon: FakeDaemon) -> None:
    """Keys and order of experts are what programs rely on."""
    value = (await ktd("placement", "get", "--json", socket=daemon.socket)).json
    assert list(value) == ["revision", "etag", "layers"]
    assert value["revision"] == 1
    assert value["layers"][0] == {
        "layer": 0,
        "num_experts": 8,
        "slots": 2,
        "gpu_experts": [0, 1],
    }
    assert [layer["layer"] for layer in value["layers"]] == [0, 1, 2, 3]


async def test_get_prints_a_line_per_layer(daemon: FakeDaemon) -> None:
    """People get a table."""
    lines = (await ktd("placement", "get", socket=daemon.socket)).out.splitlines()
    assert lines[0] == "revision 1 (start): 8 of 32 experts in 8 GPU slots"
    assert lines[2].split() == ["0", "2/2", "8", "0", "1"]


async def test_apply_of_a_strategy_waits_until_it_is_committed(daemon: FakeDaemon) -> None:
    """When `apply` returns, `get` shows the new placement."""
    daemon.traffic.decode(200)
    applied = await ktd(
        "placement", "apply", "--strategy", "frequency", "--json", socket=daemon.socket
    )
    assert applied.code == 0
    swap = applied.json
    assert (swap["state"], swap["revision"], swap["origin"]) == ("SUCCEEDED", 2, "frequency")
    assert swap["moves_done"] == swap["moves_total"] == len(swap["moves"]) > 0
    placed = (await ktd("placement", "get", "--json", socket=daemon.socket)).json
    assert placed["revision"] == 2
    assert placed["etag"] == swap["etag"]
    for move in swap["moves"]:
        assert move["load"] in placed["layers"][move["layer"]]["gpu_experts"]


async def test_apply_prints_what_moved(daemon: FakeDaemon) -> None:
    """People see the sum and the experts of each layer."""
    daemon.traffic.decode(200)
    result = await ktd("placement", "apply", "--strategy", "frequency", socket=daemon.socket)
    lines = result.out.splitlines()
    assert "frequency: " in lines[0]
    assert lines[0].endswith("revision 2")
    assert lines[1].split() == ["layer", "to", "GPU", "slots", "to", "the", "CPU"]


async def test_apply_of_what_is_there_moves_nothing(daemon: FakeDaemon) -> None:
    """A repeated apply is a success that says so."""
    result = await ktd("placement", "apply", "--strategy", "uniform", socket=daemon.socket)
    assert result.code == 0
    assert result.out.startswith("Nothing to move")


async def test_what_get_prints_can_be_applied(daemon: FakeDaemon, tmp_path: Path) -> None:
    """A saved placement is restored from its file, whatever its own etag."""
    saved = (await ktd("placement", "get", "--json", socket=daemon.socket)).out
    file = tmp_path / "placement.json"
    file.write_text(saved)
    daemon.traffic.decode(200)
    await ktd("placement", "apply", "--strategy", "frequency", socket=daemon.socket)
    result = await ktd("placement", "apply", "--file", str(file), socket=daemon.socket)
    assert result.code == 0, result.err
    now = (await ktd("placement", "get", "--json", socket=daemon.socket)).json
    assert now["layers"] == json.loads(saved)["layers"]
    assert now["revision"] == 3


async def test_a_target_is_read_from_standard_input(daemon: FakeDaemon) -> None:
    """`--file -` takes a pipe; with --partial other layers stay."""
    target = json.dumps({"layers": [{"layer": 2, "gpu_experts": [7, 3]}]})
    arguments = ("placement", "apply", "--file", "-", "--partial", "--json")
    result = await ktd(*arguments, socket=daemon.socket, stdin=target)
    assert result.code == 0, result.err
    layers = (await ktd("placement", "get", "--json", socket=daemon.socket)).json["layers"]
    assert [layer["gpu_experts"] for layer in layers] == [[0, 1], [0, 1], [3, 7], [0, 1]]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "the file is no JSON"),
        ("[]", "the file has no list 'layers'"),
        ('{"layers": []}', "the file has no list 'layers'"),
        ('{"layers": [1]}', "layers[0] is no object"),
        ('{"layers": [{"layer": "0", "gpu_experts": []}]}', "'layer' is '0'"),
        ('{"layers": [{"layer": true, "gpu_experts": []}]}', "'layer' is True"),
        ('{"layers": [{"layer": 0, "gpu_experts": [0.5]}]}', "no list of expert ids"),
        ('{"layers": [{"layer": 0, "gpu_experts": [-1]}]}', "no list of expert ids"),
        ('{"layers": [{"layer": 0}]}', "no list of expert ids"),
        (
            '{"layers": [{"layer": 0, "gpu_experts": []}, {"layer": 0, "gpu_experts": []}]}',
            "layers[1] names layer 0 a second time",
        ),
    ],
)
def test_a_malformed_target_is_refused_before_the_daemon_is_asked(
    text: str, complaint: str
) -> None:
    """One sentence says where the file is wrong."""
    with pytest.raises(InvalidArgument, match=re.escape(complaint)):
        parse_target(text, "the file")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "standard input is no JSON"),
        ('{"layers": [{"layer": 9, "gpu_experts": [0]}]}', "9"),
        ('{"layers": [{"layer": 0, "gpu_experts": [0]}]}', "layer"),
    ],
)
async def test_a_wrong_target_changes_nothing(
    daemon: FakeDaemon, text: str, complaint: str
) -> None:
    """Refused here or by the daemon: exit code 2 and one sentence."""
    result = await ktd("placement", "apply", "--file", "-", socket=daemon.socket, stdin=text)
    assert result.code == 2
    assert complaint in result.err
    assert result.err.count("\n") == 1
    assert daemon.placement.revision == 1


async def test_a_target_that_does_not_fit_is_refused(daemon: FakeDaemon) -> None:
    """More experts than slots: exit code 3, nothing changed."""
    text = json.dumps({"layers": [{"layer": 1, "gpu_experts": [0, 1, 2]}]})
    arguments = ("placement", "apply", "--file", "-", "--partial")
    result = await ktd(*arguments, socket=daemon.socket, stdin=text)
    assert result.code == 3
    assert result.err.count("\n") == 1


async def test_an_unknown_strategy_is_refused_by_the_daemon(daemon: FakeDaemon) -> None:
    """The daemon knows which strategies there are, so the client does not have to."""
    result = await ktd("placement", "apply", "--strategy", "best", socket=daemon.socket)
    assert result.code == 2
    assert "best" in result.err


async def test_a_stale_etag_is_a_conflict(daemon: FakeDaemon) -> None:
    """Exit code 5 tells a script to read again; nothing is retried behind its back."""
    etag = (await ktd("placement", "get", "--json", socket=daemon.socket)).json["etag"]
    daemon.traffic.decode(200)
    await ktd("placement", "apply", "--strategy", "frequency", socket=daemon.socket)
    for command in (("apply", "--strategy", "uniform"), ("undo",)):
        result = await ktd("placement", *command, "--etag", etag, socket=daemon.socket)
        assert result.code == 5, result
    assert daemon.placement.revision == 2


async def test_a_plan_is_applied_by_its_id(daemon: FakeDaemon) -> None:
    """What was looked at is what is done."""
    daemon.traffic.decode(200)
    plan = (
        await ktd("placement", "plan", "--strategy", "frequency", "--json", socket=daemon.socket)
    ).json
    assert plan["hit_rate_after"] > plan["hit_rate_before"]
    assert daemon.placement.revision == 1
    result = await ktd("placement", "apply", "--plan", plan["plan"], "--json", socket=daemon.socket)
    assert result.json["moves"] == plan["moves"]
    again = await ktd(
        "placement", "apply", "--plan", "engines/default/plans/no", socket=daemon.socket
    )
    assert again.code == 2


async def test_plan_names_the_command_that_applies_it(daemon: FakeDaemon) -> None:
    """The last line can be copied."""
    daemon.traffic.decode(200)
    result = await ktd("placement", "plan", "--strategy", "frequency", socket=daemon.socket)
    assert "GPU hit rate" in result.out
    assert result.out.splitlines()[-1].startswith(
        "ktd placement apply --plan engines/default/plans/"
    )


async def test_dry_run_changes_nothing(daemon: FakeDaemon) -> None:
    """The daemon checks, and says how much would move."""
    daemon.traffic.decode(200)
    arguments = ("placement", "apply", "--strategy", "frequency", "--dry-run")
    result = await ktd(*arguments, socket=daemon.socket)
    assert result.code == 0
    assert "nothing was changed" in result.out
    assert daemon.placement.revision == 1


async def test_a_plan_is_not_applied_to_another_state_than_the_one_named(
    daemon: FakeDaemon,
) -> None:
    """`--etag` counts beside a plan's own; nothing moves and the plan is kept."""
    daemon.traffic.decode(200)
    planned = await ktd(
        "placement", "plan", "--strategy", "frequency", "--json", socket=daemon.socket
    )
    apply = ("placement", "apply", "--plan", planned.json["plan"])
    assert (await ktd(*apply, "--etag", '"another"', socket=daemon.socket)).code == 5
    assert daemon.placement.revision == 1
    assert (await ktd(*apply, socket=daemon.socket)).code == 0


@pytest.mark.parametrize(
    "words",
    [
        ("plan", "--strategy", "frequency"),
        ("apply", "--strategy", "frequency"),
        ("apply", "--plan", "engines/default/plans/1"),
    ],
)
async def test_partial_without_a_file_is_refused(daemon: FakeDaemon, words) -> None:
    """Nothing else leaves layers out."""
    result = await ktd("placement", *words, "--partial", socket=daemon.socket)
    assert result.code == 2
    assert "--partial needs --file" in result.err
    assert daemon.placement.revision == 1


async def test_undo_brings_the_earlier_placement_back(daemon: FakeDaemon) -> None:
    """History shows both; undo with nothing left says so."""
    daemon.traffic.decode(200)
    await ktd("placement", "apply", "--strategy", "frequency", socket=daemon.socket)
    undone = await ktd("placement", "undo", "--json", socket=daemon.socket)
    assert undone.json["origin"] == "undo"
    layers = (await ktd("placement", "get", "--json", socket=daemon.socket)).json["layers"]
    assert [layer["gpu_experts"] for layer in layers] == [[0, 1]] * 4
    history = (await ktd("placement", "history", "--json", socket=daemon.socket)).json["entries"]
    assert [entry["origin"] for entry in history] == ["undo", "frequency", "start"]
    assert isinstance(history[0]["bytes"], int)
    nothing = await ktd("placement", "undo", socket=daemon.socket)
    assert nothing.code == 3


async def test_no_wait_returns_before_the_swap_ends(daemon: FakeDaemon) -> None:
    """The swap goes on in the daemon; a second one meanwhile is a conflict."""
    daemon.traffic.decode(200)
    copied = daemon.target.hold("wait_copied")
    arguments = ("placement", "apply", "--strategy", "frequency", "--no-wait", "--json")
    started = await ktd(*arguments, socket=daemon.socket)
    assert started.code == 0
    assert started.json["state"] == "STAGING"
    second = await ktd("placement", "apply", "--strategy", "random", socket=daemon.socket)
    assert second.code == 5
    copied.set()
    async with KtdClient(daemon.socket) as client:
        assert (await client.wait_for_swap(started.json["name"])).revision == 2


async def test_a_swap_that_fails_is_reported(daemon: FakeDaemon) -> None:
    """The sentence is the daemon's; the exit code is not 0."""
    daemon.traffic.decode(200)
    daemon.target.fail_on("wait_copied")
    result = await ktd("placement", "apply", "--strategy", "frequency", socket=daemon.socket)
    assert result.code == 1
    assert "rank 1 failed in wait_copied" in result.err
    assert result.err.count("\n") == 1


async def test_an_engine_that_does_not_serve_is_exit_code_6(tmp_path: Path) -> None:
    """Scripts can wait and try again."""
    async with fake_daemon(tmp_path, ready=False) as daemon:
        result = await ktd("placement", "get", socket=daemon.socket)
    assert result.code == 6
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(("answer", "revision"), [("y", 2), ("n", 1), ("", 1), ("\x04", 1)])
async def test_on_a_terminal_apply_shows_the_plan_and_asks(
    daemon: FakeDaemon, answer: str, revision: int
) -> None:
    """Only yes is yes; Ctrl-D is no."""
    daemon.traffic.decode(200)
    arguments = ("placement", "apply", "--strategy", "frequency")
    async with on_terminal(*arguments, KTD_SOCKET=str(daemon.socket)) as terminal:
        assert "GPU hit rate" in await terminal.shows("Apply this? [y/N]")
        terminal.type(answer + ("" if answer == "\x04" else "\n"))
        code = await terminal.end()
    assert code == (0 if revision == 2 else 1)
    assert daemon.placement.revision == revision


async def test_yes_does_not_ask_on_a_terminal(daemon: FakeDaemon) -> None:
    """`--yes` is for those who know; what moved is shown in colours."""
    daemon.traffic.decode(200)
    arguments = ("placement", "apply", "--strategy", "frequency", "--yes")
    async with on_terminal(*arguments, KTD_SOCKET=str(daemon.socket)) as terminal:
        text = await terminal.shows("revision 2")
        assert await terminal.end() == 0
    assert "[y/N]" not in text
    assert "\x1b[32m" in text


async def test_no_color_is_honoured_on_a_terminal(daemon: FakeDaemon) -> None:
    """No escape sequence for a colour is sent."""
    arguments = ("status", "--socket", str(daemon.socket))
    async with on_terminal(*arguments, NO_COLOR="1") as terminal:
        text = await terminal.shows("versions")
        assert await terminal.end() == 0
    assert "\x1b[" not in text


async def test_ctrl_c_while_waiting_leaves_the_swap_to_the_daemon(daemon: FakeDaemon) -> None:
    """The client says that the swap goes on, and it does."""
    daemon.traffic.decode(200)
    copied = daemon.target.hold("wait_copied")
    arguments = ("placement", "apply", "--strategy", "frequency", "--yes")
    async with on_terminal(*arguments, KTD_SOCKET=str(daemon.socket)) as terminal:
        await terminal.shows("staging")
        terminal.type("\x03")
        await terminal.shows("the swap goes on in the daemon")
        assert await terminal.end() == 130
    copied.set()
    async with KtdClient(daemon.socket) as client:
        (swap,) = await client.swaps()
        assert (await client.wait_for_swap(swap.name)).revision == 2


async def test_plan_prints_time_speed_memory_and_the_restart(daemon: FakeDaemon) -> None:
    """Everything that an operator decides by."""
    daemon.traffic.decode(200)
    text = (await ktd("placement", "plan", "--strategy", "frequency", socket=daemon.socket)).out
    assert re.search(r"to copy in about [\d.]+ ms", text)
    assert re.search(r"GPU hit rate on the recent statistics: [\d.]+ % now, [\d.]+ % then", text)
    assert re.search(r"Predicted decode: [\d.]+ tokens/s now, [\d.]+ then", text)
    assert "Memory: 96.0 KiB of slots, as now" in text
    assert "! Predicted speed rests on defaults" in text


async def test_plan_says_what_a_restart_would_give(daemon: FakeDaemon) -> None:
    """Slots per layer are fixed until then."""
    daemon.traffic.decode(200)
    text = (await ktd("placement", "plan", "--strategy", "front-loading", socket=daemon.socket)).out
    assert re.search(r"restart with the slots it would like \(0 to 8 a layer\) .*: 2\d\.\d %", text)
    assert "ktd placement apply --restart does that" in text


async def test_plan_diff_shows_what_leaves_enters_and_stays(daemon: FakeDaemon) -> None:
    """Layer by layer; layers that stay as they are are not named."""
    target = json.dumps({"layers": [{"layer": 2, "gpu_experts": [1, 5]}]})
    arguments = ("placement", "plan", "--file", "-", "--partial", "--diff")
    lines = (await ktd(*arguments, socket=daemon.socket, stdin=target)).out.splitlines()
    begin = lines.index("@@ layer 2, 2 slots @@")
    assert lines[begin + 1 : begin + 4] == ["- 0", "+ 5", "  1"]
    assert not [line for line in lines if line.startswith("@@") and "layer 2" not in line]


async def test_plan_json_has_the_predictions(daemon: FakeDaemon) -> None:
    """For programs: numbers, and null where no restart would change anything."""
    daemon.traffic.decode(200)
    arguments = ("placement", "plan", "--json", "--strategy")
    value = (await ktd(*arguments, "frequency", socket=daemon.socket)).json
    assert value["copy_seconds"] > 0
    assert value["after"]["hit_rate"] == value["hit_rate_after"]
    assert value["after"]["tokens_per_second"] > value["before"]["tokens_per_second"]
    loaded = (await ktd(*arguments, "front-loading", socket=daemon.socket)).json
    assert [layer["slots"] for layer in loaded["restart"]["layers"]] == [8, 0, 0, 0]
    assert 0 < loaded["restart"]["hit_rate"] < 1
    same = (await ktd(*arguments, "uniform", socket=daemon.socket)).json
    assert same["restart"] is None


async def test_apply_says_that_the_policy_is_paused(daemon: FakeDaemon) -> None:
    """Plan, apply and undo each say what they mean for it."""
    daemon.placement.policy_hold.set("adaptive")
    plan = await ktd("placement", "plan", "--strategy", "random", socket=daemon.socket)
    assert "! The policy adaptive moves nothing for the next 60 seconds." in plan.out
    apply = ("placement", "apply", "--strategy", "random", "--yes")
    assert "! The policy adaptive is paused" in (await ktd(*apply, socket=daemon.socket)).out
    undo = await ktd("placement", "undo", "--yes", "--json", socket=daemon.socket)
    walked, paused = undo.json["notes"]
    assert "the placement of revision 1" in walked
    assert "operators' changes only" in walked
    assert paused.startswith("The policy adaptive is paused")
