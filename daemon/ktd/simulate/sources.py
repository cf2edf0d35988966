"""From a file of recorded routing to a workload."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ktd.simulate.workload import Phase, Workload, with_mixed
from ktd.stats.trace import read_trace

if TYPE_CHECKING:
    from pathlib import Path


def read_workload(path: Path, num_experts: int | None = None) -> Workload:
    """The phases of a file; those of an npz are followed by one that mixes them.

    Args:
        path: ``.npz``, or ``.pt`` of per_token recording.
        num_experts: Experts per layer; None: as many as the highest id in the file needs.

    Raises:
        ConfigError: the file is missing, holds no routing, or has more experts than that.
    """
    trace = read_trace(path)
    phases = [Phase(phase.name, phase.ids, phase.decode) for phase in trace.phases]
    mixed = with_mixed(phases) if path.suffix == ".npz" else tuple(phases)
    return Workload(mixed, num_experts or trace.num_experts)
