"""`ktd chat`: talk to the model through the daemon's OpenAI front."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Generator
from contextlib import closing
from typing import TYPE_CHECKING, Any

from ktd.cli.arguments import add_command, positive_int
from ktd.cli.connection import engine_status
from ktd.cli.conversation import Conversation, Piece
from ktd.cli.exit_codes import ExitCode
from ktd.cli.openai_front import Front
from ktd.cli.prompt import Prompt
from ktd.cli.quantities import seconds_text
from ktd.cli.terminal import Terminal, err, out
from ktd.errors import EngineNotReady, KtdError

if TYPE_CHECKING:
    from ktd.cli.arguments import Subparsers

Pieces = Generator[Piece, None, None]
_Show = Callable[[Conversation, Pieces], None]

_COMMANDS = """\
/retry    ask the last question again
/clear    forget the conversation
/history  show the conversation
/help     this list
/quit     leave (also Ctrl-D); Ctrl-C stops an answer"""


def add_parser(subparsers: Subparsers) -> None:
    """Adds `ktd chat`."""
    parser = add_command(
        subparsers,
        "chat",
        summary="talk to the model",
        description=(
            "Talks to the served model; answers are streamed. Reads questions from the terminal,\n"
            "a line each, or from a pipe. With --json each answer is a line of JSON.\n\n"
            f"In the conversation:\n{_COMMANDS}"
        ),
        examples=[
            "ktd chat",
            "ktd chat 'What is a mixture of experts?'",
            "ktd chat --temperature 0 < questions.txt",
        ],
    )
    parser.add_argument("message", nargs="?", help="ask this, print the answer and leave")
    parser.add_argument("--system", default="", help="a system message")
    parser.add_argument("--max-tokens", type=positive_int, help="length limit of an answer")
    parser.add_argument("--temperature", type=float, help="0 always takes the likeliest token")
    parser.add_argument("--top-p", type=float, help="share of probability to sample from")
    parser.add_argument("--seed", type=int, help="make sampling repeatable")
    parser.add_argument("--url", help="an OpenAI API to use instead of the daemon's own")
    parser.add_argument("--model", help="model name to send (default: the served one)")
    parser.add_argument(
        "--api-key", default=os.environ.get("KTD_API_KEY", ""), help="(default: $KTD_API_KEY)"
    )


def run(args: argparse.Namespace, _rest: list[str]) -> int:
    """Runs the conversation."""
    conversation = _conversation(args)
    show = _print_json if getattr(args, "json", False) else _print_answer
    if args.message is not None:
        show(conversation, conversation.ask(args.message))
        return ExitCode.OK
    prompt = Prompt.of(sys.stdin, sys.stdout)
    if prompt.interactive:
        out().line(out().styled(f"{args.model}: /help lists commands, Ctrl-D leaves", "dim"))
    return _converse(conversation, prompt, show)


def _conversation(args: argparse.Namespace) -> Conversation:
    address: str = args.url
    if not args.url or not args.model:
        status = engine_status(args)
        address = args.url or status.http_address
        args.model = args.model or status.model.served_name or "default"
        if not address:
            raise EngineNotReady(
                "the daemon does not say where its HTTP front is; see 'ktd status'"
            )
    options: dict[str, Any] = {"model": args.model}
    for name in ("max_tokens", "temperature", "top_p", "seed"):
        if getattr(args, name) is not None:
            options[name] = getattr(args, name)
    return Conversation(Front(address.removesuffix("/v1"), args.api_key), options, args.system)


def _converse(conversation: Conversation, prompt: Prompt, show: _Show) -> int:
    """Reads lines until the end; a failed answer ends a pipe and is only told to a person."""
    for line in prompt.lines():
        try:
            if not _obey(conversation, line, show):
                break
        except KeyboardInterrupt:
            if not prompt.interactive:
                raise
            out().line(out().styled(" (stopped)", "dim"))
        except KtdError as error:
            if not prompt.interactive:
                raise
            err().line(f"{err().styled('ktd:', 'red')} {error}")
    return ExitCode.OK


def _obey(conversation: Conversation, line: str, show: _Show) -> bool:
    """Does what one line asks for; False when it is to leave."""
    command = line.strip()
    if command in ("/quit", "/exit"):
        return False
    if command == "/clear":
        conversation.clear()
    elif command == "/retry":
        show(conversation, conversation.retry())
    elif command == "/history":
        for turn in conversation.turns:
            out().line(f"{out().styled(turn['role'] + ':', 'dim')} {turn['content']}")
    elif command == "/help":
        out().line(_COMMANDS)
    elif command.startswith("/") and " " not in command and "/" not in command[1:]:
        err().line(f"ktd: there is no command {command}; /help lists them")
    elif command:
        show(conversation, conversation.ask(line))
    return True


def _print_answer(conversation: Conversation, pieces: Pieces) -> None:
    terminal = out()
    with closing(pieces):
        for piece in pieces:
            terminal.write(terminal.styled(piece.text, "dim") if piece.thinking else piece.text)
    terminal.line()
    if terminal.interactive:
        terminal.line(terminal.styled(_speed(conversation), "dim"))


def _speed(conversation: Conversation) -> str:
    answer = conversation.last
    text = (
        f"{answer.tokens} tokens, first after {seconds_text(answer.first_token_seconds)}, "
        f"{answer.tokens_per_second:.1f} tokens/s"
    )
    return f"{text}, cut off at the length limit" if answer.finish_reason == "length" else text


def _print_json(conversation: Conversation, pieces: Pieces) -> None:
    with closing(pieces):
        for _ in pieces:
            pass
    answer = conversation.last
    line = {
        "role": "assistant",
        "content": answer.text,
        "finish_reason": answer.finish_reason,
        "completion_tokens": answer.tokens,
        "first_token_seconds": round(answer.first_token_seconds, 6),
        "seconds": round(answer.seconds, 6),
        "tokens_per_second": round(answer.tokens_per_second, 3),
    }
    terminal: Terminal = out()
    terminal.write(json.dumps(line, ensure_ascii=False) + "\n")
