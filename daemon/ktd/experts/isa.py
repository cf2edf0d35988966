"""Which CPU kernels this host can run, and why not the others. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ktd.experts import _native


@dataclass(frozen=True, slots=True)
class Isa:
    """One row of the kernel table.

    Attributes:
        name: What ``KTD_ISA`` takes.
        required: CPU features, as ``/proc/cpuinfo`` names them.
        missing: Those of them that this CPU, or its operating system, does not offer.
    """

    name: str
    required: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def supported(self) -> bool:
        """Whether this host can run it."""
        return not self.missing


def isas() -> tuple[Isa, ...]:
    """All kernels of this build, best first; the first supported one is the default."""
    return tuple(
        Isa(name=row["name"], required=tuple(row["required"]), missing=tuple(row["missing"]))
        for row in _native.isas()
    )
