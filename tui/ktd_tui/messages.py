"""Everything that the session tells the app. Bursts are coalesced: only the newest is handled."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from textual.message import Message

from ktd.client import EngineStatus, Placement, Plan, Swap
from ktd_tui.activity import Activity


class Link(Enum):
    """The connection to the daemon."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    STALE = "stale"
    LOST = "disconnected"


class Burst(Message):
    """A message that a newer one of its class makes worthless."""

    def can_replace(self, message: Message) -> bool:
        """True for any message of the same class."""
        return type(message) is type(self)


@dataclass
class LinkChanged(Burst):
    """The connection changed; ``retry_in`` is in seconds, 0 if no retry is due."""

    link: Link
    detail: str = ""
    retry_in: float = 0.0


@dataclass
class StatusArrived(Burst):
    """The engine's status."""

    status: EngineStatus


@dataclass
class ActivityArrived(Burst):
    """New statistics."""

    activity: Activity


@dataclass
class PlacementArrived(Burst):
    """The committed placement."""

    placement: Placement


@dataclass
class SwapArrived(Burst):
    """Progress or the end of a swap."""

    swap: Swap


@dataclass
class PlanArrived(Message):
    """The answer to a request for a plan."""

    strategy: str
    plan: Plan


@dataclass
class Refused(Message):
    """The daemon refused a request, or it failed; one sentence."""

    what: str
    reason: str
