"""One thing that `ktd doctor` found out about this host."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Level(StrEnum):
    """How a finding bears on serving a model here."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """A finding.

    Attributes:
        area: What it is about: ``cpu``, ``memory``, ``gpu``, ``software`` or ``service``.
        name: Which thing of that area.
        level: ``problem`` means that `ktd serve` cannot work here.
        text: What was found.
        advice: What to do about it; empty where there is nothing to do.
        data: The same for programs.
    """

    area: str
    name: str
    level: Level
    text: str
    advice: str = ""
    data: dict[str, Any] = field(default_factory=dict)
