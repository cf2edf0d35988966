"""From text, or a TOML value, to a setting's type; each parser says in one phrase what it wants.

A parser raises ``ValueError`` with that phrase (``"a number of bytes such as 500M or 2G"``); the
caller adds the flag's name and the value.
"""

from __future__ import annotations

import re
from pathlib import Path

_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?(?:/s)?", re.IGNORECASE)
_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})


def text(value: object) -> str:
    """Any string that is not empty."""
    if not isinstance(value, str) or not value:
        raise ValueError("text")
    return value


def path(value: object) -> Path:
    """A path; ``~`` is expanded, a relative one is taken from the current folder."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("a path")
    return Path(value).expanduser().absolute()


def integer(value: object) -> int:
    """A whole number."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?\d+\s*", value):
        return int(value)
    raise ValueError("a whole number")


def seconds(value: object) -> float:
    """Seconds, not negative; a trailing ``s`` is allowed."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        number = float(value)
    elif isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?s?", value.strip()):
        number = float(value.strip().removesuffix("s"))
    else:
        raise ValueError("a number of seconds")
    if not 0 <= number < float("inf"):
        raise ValueError("a number of seconds")
    return number


def size(value: object) -> float:
    """Bytes: ``1048576``, ``500M`` (10^6), ``2G``, ``512Mi`` (2^20); ``/s`` may follow."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0:
        return float(value)
    match = _BYTES.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError("a number of bytes such as 500M, 2G or 512Mi")
    number, unit, binary = match.groups()
    return float(number) * float(1024 if binary else 1000) ** _POWER[unit.lower()]


def ratio(value: object) -> float | str:
    """A share from 0 to 1, or ``"auto"``; the range is checked where all settings are."""
    if isinstance(value, str) and value.strip().lower() == "auto":
        return "auto"
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError("a number from 0 to 1, or auto")  # noqa: TRY004 - the caller's protocol
    try:
        return float(value)
    except ValueError:
        raise ValueError("a number from 0 to 1, or auto") from None


def number(value: object) -> float:
    """A number of 0 or more."""
    try:
        found = float(value) if isinstance(value, (str, int, float)) else -1.0
    except ValueError:
        found = -1.0
    if isinstance(value, bool) or not 0 <= found < float("inf"):
        raise ValueError("a number of 0 or more")
    return found


def switch(value: object) -> bool:
    """On or off."""
    if isinstance(value, bool):
        return value
    lowered = value.strip().lower() if isinstance(value, str) else ""
    if lowered in _TRUE or lowered in _FALSE:
        return lowered in _TRUE
    raise ValueError("true or false")
