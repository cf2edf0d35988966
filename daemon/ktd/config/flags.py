"""Splits the command line of ``ktd serve`` into ktd's options, the model and SGLang's arguments.

What ktd does not know is SGLang's, verbatim and in order, and so are the values that follow it.
That makes a bare word ambiguous after such a flag; MODEL therefore comes before them, or by
``--model``. Everything after ``--`` is SGLang's.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ktd.config.legacy import LEGACY_FLAGS, REFUSED_FLAGS
from ktd.config.options import BY_FLAG
from ktd.errors import ConfigError

# Set by ktd itself, or meaningless beside it.
_OWNED = {
    "--kt-": "ktd has no such flag",
    "--ktd-": "ktd has no such flag",
}


@dataclass(frozen=True, slots=True)
class CommandLine:
    """A command line, taken apart.

    Attributes:
        given: Option name → (flag as typed, text).
        model: MODEL, where it stood without a flag.
        sglang_args: SGLang's part.
        notices: Sentences about flags that ktd does not need.
    """

    given: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    model: str | None = None
    sglang_args: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()


def split(argv: Sequence[str]) -> CommandLine:
    """Takes ``argv`` (without program and subcommand) apart.

    Raises:
        ConfigError: an option has no value or is refused, or a word
            stands where none is expected.
    """
    given: dict[str, tuple[str, str]] = {}
    sglang: list[str] = []
    notices: list[str] = []
    model: str | None = None
    words = list(argv)
    while words:
        word = words.pop(0)
        flag, equals, attached = word.partition("=")
        if word == "--":
            sglang += words
            break
        if flag in BY_FLAG:
            alone = BY_FLAG[flag].switch and not equals
            text = "yes" if alone else attached if equals else _value(flag, words)
            # The last one wins, as everywhere: wrappers append to what they were given.
            given[BY_FLAG[flag].name] = (flag, text)
        elif flag in LEGACY_FLAGS:
            _drop_values(LEGACY_FLAGS[flag].values, flag, words, attached=bool(equals))
            notices.append(f"{flag} is not needed: {LEGACY_FLAGS[flag].notice}")
        elif flag in REFUSED_FLAGS:
            raise ConfigError(f"{flag} is refused: {REFUSED_FLAGS[flag]}.")
        elif word.startswith("-"):
            _refuse_mistyped(flag)
            sglang.append(word)
            while words and not words[0].startswith("--"):
                sglang.append(words.pop(0))
        elif model is None:
            model = word
        else:
            raise ConfigError(
                f"{word!r} is not expected after the model {model!r}; quote a path that has spaces."
            )
    return CommandLine(given, model, tuple(sglang), tuple(notices))


def _value(flag: str, words: list[str]) -> str:
    if not words or words[0].startswith("--"):
        raise ConfigError(f"{flag} needs a value.")
    return words.pop(0)


def _drop_values(count: int, flag: str, words: list[str], *, attached: bool) -> None:
    if count == 1 and not attached:
        _value(flag, words)
    while count < 0 and words and not words[0].startswith("-"):
        words.pop(0)


def _refuse_mistyped(flag: str) -> None:
    """The prefixes of ktd are not SGLang's: say so at once instead of after SGLang's start."""
    for prefix, sentence in _OWNED.items():
        if flag.startswith(prefix):
            near = difflib.get_close_matches(flag, [*BY_FLAG, *LEGACY_FLAGS], n=1)
            hint = f"; did you mean {near[0]}?" if near else "."
            raise ConfigError(f"{flag} is unknown: {sentence}{hint}")
