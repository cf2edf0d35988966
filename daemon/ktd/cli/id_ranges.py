"""Lists of expert ids as people read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def id_ranges(ids: Iterable[int]) -> str:
    """``[0, 1, 2, 5, 7, 8]`` → ``0-2 5 7 8``; runs of three and more become ranges."""
    runs: list[list[int]] = []
    for number in sorted(ids):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    parts = []
    for run in runs:
        if run[-1] - run[0] > 1:
            parts.append(f"{run[0]}-{run[-1]}")
        else:
            parts.extend(str(number) for number in run)
    return " ".join(parts)
