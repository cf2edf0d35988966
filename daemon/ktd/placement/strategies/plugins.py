"""Strategies that other packages bring, as entry points of ``ktd.placement_strategies``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from ktd.placement.model import POLICY_ORIGIN

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ktd.placement.strategies.base import Strategy

GROUP = "ktd.placement_strategies"
# Names that ``Placement.origin`` has other meanings for.
_RESERVED = frozenset({"explicit", "undo", "start", "restored"})


@dataclass(frozen=True, slots=True)
class Plugins:
    """What was found.

    Attributes:
        strategies: By the name of the entry point.
        broken: For each entry point that cannot be used, one sentence.
    """

    strategies: Mapping[str, Strategy]
    broken: Mapping[str, str]


@lru_cache(maxsize=1)
def installed_plugins(taken: frozenset[str]) -> Plugins:
    """Loads the entry points of this environment; one that is broken keeps no other away.

    Args:
        taken: Names that ktd's own strategies have.
    """
    strategies: dict[str, Strategy] = {}
    broken: dict[str, str] = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        name = entry.name
        if name in taken or name in strategies or name in _RESERVED:
            broken.setdefault(name, _sentence(entry, "its name is taken"))
        elif name.startswith(POLICY_ORIGIN):
            broken[name] = _sentence(entry, f"its name begins with {POLICY_ORIGIN!r}")
        else:
            try:
                strategies[name] = _loaded(entry)
            except Exception as failure:  # noqa: BLE001  # importing foreign code may raise anything
                broken[name] = _sentence(entry, f"{type(failure).__name__}: {failure}")
    return Plugins(strategies, broken)


def _loaded(entry: EntryPoint) -> Strategy:
    value: Any = entry.load()
    strategy: Strategy = value() if isinstance(value, type) else value
    for method in ("initial", "live"):
        if not callable(getattr(strategy, method, None)):
            raise TypeError(f"it has no method {method}")
    return strategy


def _sentence(entry: EntryPoint, why: str) -> str:
    brought = entry.dist.name if entry.dist is not None else "an unknown package"
    return (
        f"The placement strategy {entry.name!r} of {brought} ({entry.value}) cannot be used: "
        f"{' '.join(why.split())}; repair or uninstall it."
    )
