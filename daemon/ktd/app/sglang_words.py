"""Values that a user gave SGLang, read off its command line."""

from __future__ import annotations

from collections.abc import Sequence

# What ktd gives SGLang on a host without a GPU; on one with a GPU SGLang takes what is left.
DEFAULT_KV_TOKENS = 65_536


def number_given(words: Sequence[str], flag: str, default: int) -> int:
    """The last value of ``flag`` that is a whole number above 0, or ``default``."""
    value = default
    for index, word in enumerate(words):
        name, equals, attached = word.partition("=")
        if name == flag:
            text = attached if equals else words[index + 1] if index + 1 < len(words) else ""
            value = int(text) if text.isdigit() and int(text) else value
    return value
