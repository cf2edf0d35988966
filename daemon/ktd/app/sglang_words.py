"""Values that a user gave SGLang, read off its command line."""

from __future__ import annotations

from collections.abc import Sequence

# What ktd gives SGLang on a host without a GPU; on one with a GPU SGLang takes what is left.
DEFAULT_KV_TOKENS = 65_536
# SGLang's own, where its command line does not say (0.5.23: a CPU host, a small GPU).
DEFAULT_CHUNK = 4096
CHUNK_FLAG = "--chunked-prefill-size"


def number_given(words: Sequence[str], flag: str) -> int | None:
    """The last value of ``flag`` that is a whole number, also one below 0; None without one."""
    value = None
    for index, word in enumerate(words):
        name, equals, attached = word.partition("=")
        if name == flag:
            text = attached if equals else words[index + 1] if index + 1 < len(words) else ""
            value = int(text) if text.removeprefix("-").isdecimal() else value
    return value


def count_given(words: Sequence[str], flag: str, default: int) -> int:
    """The same where only a number above 0 says how many; ``default`` otherwise."""
    value = number_given(words, flag)
    return value if value is not None and value > 0 else default
