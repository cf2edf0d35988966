"""One greedy completion, token by token, and how two of them compare."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from ktd.cli.openai_front import Front

_TOP = 5  # log-probabilities asked for per token, to judge a difference by
# bf16 keeps 8 bits: logits between 8 and 16 lie 1/16 apart, so two candidates within two such
# steps are a tie that the order of an addition decides.
TIE = 0.125


@dataclass(slots=True)
class Completion:
    """A text and its tokens.

    Attributes:
        text: All pieces.
        tokens: The text of each token, as the server's log-probabilities name them.
        tops: Per token, the likeliest candidates and their log-probabilities.
        first_token_seconds: From the request to the first text.
        seconds: From the request to the end.
    """

    text: str = ""
    tokens: list[str] = field(default_factory=list)
    tops: list[dict[str, float]] = field(default_factory=list)
    first_token_seconds: float = 0.0
    seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Speed after the first token; 0 for a text of one token."""
        length = self.seconds - self.first_token_seconds
        return (len(self.tokens) - 1) / length if len(self.tokens) > 1 and length > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Difference:
    """Where two greedy texts part.

    Attributes:
        position: Index of the first token that differs.
        before: The token of the first text; empty if that text had ended.
        after: The token of the second.
        gap: How much likelier the first run found its own token than the other; None if the other
            was not among its candidates.
    """

    position: int
    before: str
    after: str
    gap: float | None

    @property
    def is_tie(self) -> bool:
        """Whether bf16 cannot tell the two tokens apart."""
        return self.gap is not None and self.gap <= TIE

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "position": self.position,
            "before": self.before,
            "after": self.after,
            "gap": self.gap,
        }


def complete(
    front: Front, model: str, prompt: str, max_tokens: int, show: Callable[[str], None]
) -> Completion:
    """Streams one greedy completion, handing each piece of text to ``show``.

    Raises:
        KtdError: as :meth:`Front.stream`.
    """
    body: dict[str, Any] = {
        "model": model,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "logprobs": _TOP,
    }
    completion = Completion()
    started = time.monotonic()
    for event in front.stream("/v1/completions", body):
        for choice in event.get("choices") or ():
            piece = choice.get("text") or ""
            if piece and not completion.first_token_seconds:
                completion.first_token_seconds = time.monotonic() - started
            completion.text += piece
            logprobs = choice.get("logprobs") or {}
            completion.tokens.extend(logprobs.get("tokens") or ())
            completion.tops.extend(top or {} for top in logprobs.get("top_logprobs") or ())
            show(piece)
    completion.seconds = time.monotonic() - started
    return completion


def difference(before: Completion, after: Completion) -> Difference | None:
    """Where the second text first differs from the first; None if it does not."""
    if before.text == after.text and before.tokens == after.tokens:
        return None
    for position, (one, other) in enumerate(zip_longest(before.tokens, after.tokens, fillvalue="")):
        if one != other:
            tops = before.tops[position] if position < len(before.tops) else {}
            gap = tops[one] - tops[other] if one in tops and other in tops else None
            return Difference(position, one, other, gap)
    # Same tokens, other text: the server did not name its tokens; fall back to characters.
    position = next(
        i for i, (one, other) in enumerate(zip_longest(before.text, after.text)) if one != other
    )
    return Difference(position, before.text[position:][:1], after.text[position:][:1], None)
