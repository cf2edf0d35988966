"""Resource names of the API and the ids in them."""

from __future__ import annotations

from ktd.errors import NotFound, PlanNotFound, SwapNotFound

ENGINE = "engines/default"
PLACEMENT = f"{ENGINE}/placement"
_SWAPS = f"{ENGINE}/swaps/"
_PLANS = f"{ENGINE}/plans/"


def check_engine(name: str) -> None:
    """Accepts the engine's name, or an empty one.

    Raises:
        NotFound: it names another engine.
    """
    if name not in ("", ENGINE):
        raise NotFound(f"There is no engine {name!r}: this daemon has {ENGINE!r}.")


def check_placement(name: str) -> None:
    """Accepts the placement's name, the engine's, or an empty one.

    Raises:
        NotFound: it names something else.
    """
    if name not in ("", ENGINE, PLACEMENT):
        raise NotFound(f"There is no placement {name!r}: this daemon has {PLACEMENT!r}.")


def swap_name(swap_id: str) -> str:
    """The resource name of a swap; empty for one without an id."""
    return f"{_SWAPS}{swap_id}" if swap_id else ""


def swap_id(name: str) -> str:
    """The id in a swap's name.

    Raises:
        SwapNotFound: it is not a swap's name.
    """
    if not name.startswith(_SWAPS):
        raise SwapNotFound(f"{name!r} does not name a swap: names look like {_SWAPS}ID.")
    return name.removeprefix(_SWAPS)


def plan_name(plan_id: str) -> str:
    """The resource name of a plan."""
    return f"{_PLANS}{plan_id}"


def plan_id(name: str) -> str:
    """The id in a plan's name.

    Raises:
        PlanNotFound: it is not a plan's name.
    """
    if not name.startswith(_PLANS):
        raise PlanNotFound(f"{name!r} does not name a plan: names look like {_PLANS}ID.")
    return name.removeprefix(_PLANS)
