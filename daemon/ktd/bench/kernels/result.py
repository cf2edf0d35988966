"""One row of the results, and all of them with the ceilings they are measured against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ktd.bench.kernels.busy_core import BusyCore
from ktd.bench.kernels.ceilings import CeilingTable
from ktd.bench.kernels.cell import CellFigures
from ktd.bench.kernels.host import Host
from ktd.bench.kernels.layers import Plan
from ktd.bench.kernels.overhead import Overhead
from ktd.shapes.moe import MoeShape

_MICRO = 1e6


@dataclass(frozen=True, slots=True)
class Result:
    """One cell.

    Attributes:
        shape, format, isa, threads, tokens: Which.
        plan: The working set.
        figures: What was measured.
        torch_seconds: Median of torch's bf16 path on the same routing; None where it was not run.
        busy: With one core taken, where that was asked for.
    """

    shape: MoeShape
    format: str
    isa: str
    threads: int
    tokens: int
    plan: Plan
    figures: CellFigures
    torch_seconds: float | None = None
    busy: BusyCore | None = None

    @property
    def tail(self) -> float:
        """P99 over median."""
        return self.figures.p99 / self.figures.median

    @property
    def torch_ratio(self) -> float | None:
        """How many times as fast as torch."""
        return None if self.torch_seconds is None else self.torch_seconds / self.figures.median

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        figures = self.figures
        row: dict[str, Any] = {
            "shape": self.shape.name,
            "format": self.format,
            "isa": self.isa,
            "threads": self.threads,
            "tokens": self.tokens,
            "experts": self.plan.experts,
            "experts_of_model": self.shape.experts,
            "layers": self.plan.layers,
            "calls": figures.calls,
            "windows": figures.windows,
            "median_us": figures.median * _MICRO,
            "p99_us": figures.p99 * _MICRO,
            "p99_over_median": self.tail,
            "read_p99_over_median": figures.read_tail,
            "call_bytes": figures.call_bytes,
            "gbps": figures.bandwidth / 1e9,
            "tflops": figures.operations / 1e12,
            "floor_us": figures.floor * _MICRO,
            "floor_fraction": figures.floor_fraction.median,
            "floor_fraction_p10": figures.floor_fraction.p10,
            "floor_fraction_p90": figures.floor_fraction.p90,
            "floor_fraction_of_means": figures.mean_fraction.median,
            "bound": "memory" if figures.memory_bound else "compute",
            "unit": figures.unit,
            "many_from": figures.many_from,
            "dram_read_gbps": figures.ceiling.dram / 1e9,
            "peak_tflops": figures.ceiling.peak / 1e12,
            "dram_same_threads_gbps": figures.curve_dram / 1e9,
            "dram_same_threads_fraction": figures.curve_fraction.median,
            "torch_bf16_median_us": None,
            "torch_bf16_ratio": self.torch_ratio,
        }
        if self.torch_seconds is not None:
            row["torch_bf16_median_us"] = self.torch_seconds * _MICRO
        if self.busy is not None:
            row["busy_core"] = self.busy.as_json()
        return row


@dataclass(frozen=True, slots=True)
class Scaling:
    """How a cell's bandwidth grows with threads, beside how the read loop's does."""

    few: Result
    many: Result

    @property
    def of_curve(self) -> float:
        """The kernel's growth over the read loop's; 1: it scales as memory does."""
        kernel = self.many.figures.bandwidth / self.few.figures.bandwidth
        return kernel / (self.many.figures.curve_dram / self.few.figures.curve_dram)

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "shape": self.many.shape.name,
            "format": self.many.format,
            "isa": self.many.isa,
            "tokens": self.many.tokens,
            "from_threads": self.few.threads,
            "threads": self.many.threads,
            "of_dram_curve": self.of_curve,
        }


@dataclass(frozen=True, slots=True)
class Report:
    """Everything of one run.

    Attributes:
        host: Where.
        on_core: Share of the time in which the threads of the ceilings had a core.
        ceilings: As the sweep at the beginning found them.
        overheads: Of an empty call, by kernel set.
        results: In the order in which they were measured.
        notes: Sentences about what is missing or smaller than asked for.
    """

    host: Host
    ceilings: CeilingTable
    on_core: float
    overheads: dict[str, Overhead]
    results: tuple[Result, ...]
    notes: tuple[str, ...] = ()

    @property
    def scalings(self) -> tuple[Scaling, ...]:
        """Every memory-bound cell with more threads than the same with the fewest."""
        first: dict[tuple[str, str, str, int], Result] = {}
        found = []
        memory_bound = (row for row in self.results if row.figures.memory_bound)
        for row in sorted(memory_bound, key=lambda row: row.threads):
            key = (row.shape.name, row.format, row.isa, row.tokens)
            few = first.setdefault(key, row)
            if row.threads > few.threads:
                found.append(Scaling(few, row))
        return tuple(found)

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "host": {"cpu": self.host.cpu, "last_level_cache_bytes": self.host.last_level_cache},
            "ceilings": self.ceilings.as_json() | {"on_core": self.on_core},
            "overhead": {isa: overhead.as_json() for isa, overhead in self.overheads.items()},
            "results": [result.as_json() for result in self.results],
            "scaling": [scaling.as_json() for scaling in self.scalings],
            "notes": list(self.notes),
        }
