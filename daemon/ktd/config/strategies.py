"""Names that ``--expert-placement-strategy`` takes."""

from __future__ import annotations

from importlib.metadata import entry_points

OWN = ("uniform", "frequency", "front-loading", "random", "balanced", "latency", "coactivation")
# Other packages bring theirs under this group; whether they work is seen when one is used.
_GROUP = "ktd.placement_strategies"


def strategy_names() -> tuple[str, ...]:
    """Ktd's own strategies, then those that other packages bring, by name."""
    others = sorted({entry.name for entry in entry_points(group=_GROUP)} - set(OWN))
    return (*OWN, *others)
