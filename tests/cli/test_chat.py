"""`ktd chat` with a front that answers from a script."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from tests.cli.on_terminal import on_terminal
from tests.cli.running import Result, environment, ktd

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.fake_front import FakeFront
    from tests.rpc.fake_daemon import FakeDaemon


async def chat(front: FakeFront, *arguments: str, stdin: str = "", **env: str) -> Result:
    return await ktd("chat", "--url", front.address, "--model", "m", *arguments, stdin=stdin, **env)


async def test_one_question_on_the_command_line(front: FakeFront) -> None:
    """The answer and nothing else goes to standard output."""
    result = await chat(front, "hi", "--max-tokens", "9", "--temperature", "0", "--system", "be")
    assert (result.code, result.out, result.err) == (0, "Hello wörld\n", "")
    assert front.requests[0]["messages"] == [
        {"role": "system", "content": "be"},
        {"role": "user", "content": "hi"},
    ]
    assert front.requests[0]["max_tokens"] == 9
    assert front.requests[0]["temperature"] == 0
    assert front.requests[0]["stream"] is True
    assert "top_p" not in front.requests[0]


async def test_the_front_is_found_through_the_daemon(daemon: FakeDaemon, front: FakeFront) -> None:
    """Address and model name come from the status."""
    daemon.engine.set(http_address=front.address)
    result = await ktd("chat", "hi", socket=daemon.socket)
    assert result.out == "Hello wörld\n"
    assert front.requests[0]["model"] == "ktd-tiny"


async def test_a_pipe_is_a_conversation(front: FakeFront) -> None:
    """Each line is a question; answers are remembered."""
    result = await chat(front, stdin="one\n\ntwo\n")
    assert result.out == "Hello wörld\n" * 2
    assert [turn["content"] for turn in front.requests[1]["messages"]] == [
        "one",
        "Hello wörld",
        "two",
    ]


async def test_commands_of_the_conversation(front: FakeFront) -> None:
    """/retry asks again without the old answer, /clear forgets, /history shows, /quit leaves."""
    lines = ["one", "/retry", "two", "/history", "/clear", "three", "/quit", "four"]
    result = await chat(front, stdin="\n".join(lines) + "\n")
    asked = [[turn["content"] for turn in r["messages"]] for r in front.requests]
    assert asked == [["one"], ["one"], ["one", "Hello wörld", "two"], ["three"]]
    assert "user: two" in result.out
    assert result.code == 0


async def test_help_and_unknown_commands_ask_nothing(front: FakeFront) -> None:
    """A typing error is not sent to the model; a path is."""
    result = await chat(front, stdin="/help\n/qiut\n/etc/passwd\n")
    assert "/retry" in result.out
    assert "no command /qiut" in result.err
    assert [r["messages"][-1]["content"] for r in front.requests] == ["/etc/passwd"]


async def test_retry_without_a_question_is_refused(front: FakeFront) -> None:
    """There is nothing to ask again."""
    result = await chat(front, stdin="/retry\n")
    assert result.code == 2
    assert "nothing to retry" in result.err


async def test_json_gives_one_line_per_answer(front: FakeFront) -> None:
    """With length, reason and times."""
    result = await chat(front, "--json", stdin="one\ntwo\n")
    answers = [json.loads(line) for line in result.out.splitlines()]
    assert [answer["content"] for answer in answers] == ["Hello wörld"] * 2
    assert answers[0]["finish_reason"] == "stop"
    assert answers[0]["completion_tokens"] == 7


async def test_the_api_key_is_sent_and_a_wrong_one_explained(front: FakeFront) -> None:
    """From the flag or the environment; never printed."""
    front.api_key = "s3cret"
    assert (await chat(front, "hi", "--api-key", "s3cret")).code == 0
    assert (await chat(front, "hi", KTD_API_KEY="s3cret")).code == 0
    wrong = await chat(front, "hi", "--api-key", "other")
    assert wrong.code == 3
    assert "--api-key" in wrong.err
    assert "other" not in wrong.err


@pytest.mark.parametrize(("status", "code"), [(503, 6), (400, 3), (500, 3)])
async def test_the_servers_own_sentence_is_shown(front: FakeFront, status: int, code: int) -> None:
    """An engine that loads is 6, try again; anything else is refused."""
    front.status, front.error = status, "The engine is loading."
    result = await chat(front, "hi")
    assert (result.code, result.err) == (code, "ktd: The engine is loading.\n")


async def test_an_answer_that_breaks_off_is_an_error(front: FakeFront) -> None:
    """What came is shown, and that it is not all."""
    front.breaks_off = True
    result = await chat(front, "hi")
    assert result.out.startswith("Hello wörld")
    assert result.code == 4
    assert "broke off" in result.err


@pytest.mark.parametrize("url", ["ftp://x", "nonsense", "http://", "http://h:99999"])
async def test_a_wrong_address_is_refused(url: str) -> None:
    """With the form that is meant."""
    result = await ktd("chat", "hi", "--url", url, "--model", "m")
    assert result.code == 2
    assert "http://127.0.0.1:30000" in result.err


async def test_nothing_listening_is_exit_code_4() -> None:
    """Port 1 is nobody's."""
    result = await ktd("chat", "hi", "--url", "http://127.0.0.1:1", "--model", "m")
    assert result.code == 4
    assert "127.0.0.1:1" in result.err


async def test_ctrl_c_cancels_the_request(front: FakeFront) -> None:
    """The connection is closed, so the engine does not go on for nobody."""
    front.waits = asyncio.Event()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "ktd", "chat", "hi", "--url", front.address, "--model", "m"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment(),
    )
    assert process.stdout is not None
    await process.stdout.readexactly(len("Hello wörld".encode()))
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(30):
        _, err = await process.communicate()
        await front.cancelled.wait()
    assert process.returncode == 130
    assert err == b""


async def test_a_conversation_on_a_terminal(front: FakeFront, tmp_path: Path) -> None:
    """Ctrl-C stops an answer and nothing else, Ctrl-D leaves, lines are kept for the next time."""
    arguments = ("chat", "--url", front.address, "--model", "m")
    async with on_terminal(*arguments, XDG_STATE_HOME=str(tmp_path)) as terminal:
        await terminal.shows("/help lists commands")
        terminal.type("one\n")
        await terminal.shows("tokens/s")
        front.waits = asyncio.Event()
        terminal.type("two\n")
        await terminal.shows("Hello wörld", times=2)
        terminal.type("\x03")
        await terminal.shows("(stopped)")
        front.waits.set()
        terminal.type("three\n")
        await terminal.shows("tokens/s", times=2)
        # Typed before the prompt that follows the answer, Ctrl-D would get lost.
        await terminal.shows_after("tokens/s", "> ")
        terminal.type("\x04")
        assert await terminal.end() == 0
    assert [t["content"] for t in front.requests[2]["messages"]][::2] == ["one", "two", "three"]
    assert (tmp_path / "ktd" / "chat_history").read_text() == "one\ntwo\nthree\n"


async def test_on_a_terminal_an_error_does_not_end_the_conversation(
    front: FakeFront, tmp_path: Path
) -> None:
    """The engine may be back for the next question."""
    front.status, front.error = 503, "The engine is loading."
    arguments = ("chat", "--url", front.address, "--model", "m")
    async with on_terminal(*arguments, XDG_STATE_HOME=str(tmp_path)) as terminal:
        await terminal.shows("/help lists commands")
        terminal.type("one\n")
        await terminal.shows("The engine is loading.")
        front.status = 200
        terminal.type("one\n")
        await terminal.shows("tokens/s")
        terminal.type("/quit\n")
        assert await terminal.end() == 0
    assert len(front.requests[1]["messages"]) == 1
