"""What was said so far, and the next answer to it."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ktd.cli.openai_front import Front
from ktd.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class Piece:
    """Some text of an answer as it arrives; ``thinking`` text is not part of the answer."""

    text: str
    thinking: bool = False


@dataclass(slots=True)
class Answer:
    """One answer, complete or as far as it came.

    Attributes:
        finish_reason: What the server gave, for example ``stop`` or ``length``; empty if cut off.
        tokens: Completion tokens that the server counted, or the events seen if it did not say.
        first_token_seconds: From the request to the first text.
        seconds: From the request to the end.
    """

    text: str = ""
    finish_reason: str = ""
    tokens: int = 0
    first_token_seconds: float = 0.0
    seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Speed after the first token; 0 for answers of one token."""
        length = self.seconds - self.first_token_seconds
        return (self.tokens - 1) / length if self.tokens > 1 and length > 0 else 0.0


@dataclass(slots=True)
class Conversation:
    """A chat with one model; owns its history.

    Attributes:
        front: Where the model is served.
        options: Sampling parameters and the model's name, sent with every request.
        system: The system message, kept by :meth:`clear`.
    """

    front: Front
    options: Mapping[str, Any]
    system: str = ""
    turns: list[dict[str, str]] = field(default_factory=list)
    last: Answer = field(default_factory=Answer)

    def ask(self, text: str) -> Generator[Piece, None, None]:
        """Says ``text`` and yields the answer; what was received stays in the history.

        A question without any answer is taken back, so that it can be asked again.

        Raises:
            KtdError: as :meth:`Front.stream`.
        """
        self.turns.append({"role": "user", "content": text})
        self.last = Answer()
        started = time.monotonic()
        try:
            for piece in self._pieces():
                if not self.last.first_token_seconds:
                    self.last.first_token_seconds = time.monotonic() - started
                if not piece.thinking:
                    self.last.text += piece.text
                yield piece
        finally:
            self.last.seconds = time.monotonic() - started
            if self.last.text or self.last.finish_reason:
                self.turns.append({"role": "assistant", "content": self.last.text})
            else:
                self.turns.pop()

    def retry(self) -> Generator[Piece, None, None]:
        """Takes back the last answer and asks for another.

        Raises:
            InvalidArgument: nothing was asked yet.
            KtdError: as :meth:`ask`.
        """
        if not self.turns:
            raise InvalidArgument("there is nothing to retry yet")
        taken_back = self.turns[-2:]
        del self.turns[-2:]
        try:
            yield from self.ask(taken_back[0]["content"])
        finally:
            if not (self.last.text or self.last.finish_reason):
                self.turns.extend(taken_back)

    def clear(self) -> None:
        """Forgets everything but the system message."""
        self.turns.clear()

    def _pieces(self) -> Generator[Piece, None, None]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        body = {
            **self.options,
            "messages": [*system, *self.turns],
            "stream_options": {"include_usage": True},
        }
        counted = 0
        for event in self.front.stream("/v1/chat/completions", body):
            usage = event.get("usage") or {}
            counted = usage.get("completion_tokens", counted)
            for choice in event.get("choices") or ():
                delta = choice.get("delta") or {}
                self.last.finish_reason = choice.get("finish_reason") or self.last.finish_reason
                for key, thinking in (("reasoning_content", True), ("content", False)):
                    if delta.get(key):
                        self.last.tokens += 1
                        yield Piece(delta[key], thinking)
        self.last.tokens = counted or self.last.tokens
