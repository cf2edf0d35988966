"""Numbers as people read them."""

from __future__ import annotations

_KIBI = 1024
_KILO = 1000
_TEN = 10
_MINUTE = 60
_HOUR = 3600


def bytes_text(count: int) -> str:
    """``1536`` → ``1.5 KiB``; binary units, at most four digits."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < _KIBI:
            return f"{count} B" if unit == "B" else _digits(value, unit)
        value /= _KIBI
    return _digits(value, "TiB")


def count_text(count: int) -> str:
    """``1234567`` → ``1.23M``; exact below 10,000."""
    if count < _TEN * _KILO:
        return str(count)
    value = float(count)
    for unit in ("", "k", "M", "G"):
        if value < _KILO:
            return f"{value:.3g}{unit}"
        value /= _KILO
    return f"{value:.3g}T"


def share_text(share: float) -> str:
    """``0.4267`` → ``42.7 %``."""
    return f"{100 * share:.1f} %"


def seconds_text(seconds: float) -> str:
    """``75.2`` → ``1m15s``."""
    if seconds < _TEN:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole}s"
    if whole < _HOUR:
        return f"{whole // _MINUTE}m{whole % _MINUTE:02d}s"
    return f"{whole // _HOUR}h{whole % _HOUR // _MINUTE:02d}m"


def number_text(value: float) -> str:
    """``59.87`` → ``59.9``, ``8477.1`` → ``8477``: never with an exponent."""
    return f"{value:.1f}" if value < _TEN * _TEN else f"{value:.0f}"


def plural(count: int, noun: str) -> str:
    """``1, "move"`` → ``1 move``; ``2, "move"`` → ``2 moves``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _digits(value: float, unit: str) -> str:
    return f"{value:.1f} {unit}" if value < 100 * _TEN else f"{value:.0f} {unit}"
