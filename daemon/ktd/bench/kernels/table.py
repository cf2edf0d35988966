"""The results as rows of text, and as a page of Markdown."""

from __future__ import annotations

from ktd.bench.kernels.busy_core import BusyCore
from ktd.bench.kernels.result import Report, Result

HEADER = (
    "shape",
    "format",
    "ISA",
    "threads",
    "tokens",
    "median µs",
    "p99 µs",
    "GB/s",
    "TFLOP/s",
    "of floor",
    "p10–p90",
    "of means",
    "bound by",
    "p99/median",
    "read loop's",
    "× torch",
)
ALIGN = "lllrrrrrrrrrlrrr"
CEILING_HEADER = ("unit", "1 thread", "all threads", "a cycle and core")
CEILING_ALIGN = "lrrr"
_QUIET = 0.97


def cells(result: Result) -> tuple[str, ...]:
    """One row under ``HEADER``."""
    figures = result.figures
    fraction = figures.floor_fraction
    ratio = result.torch_ratio
    return (
        result.shape.name,
        result.format,
        result.isa,
        str(result.threads),
        str(result.tokens),
        f"{figures.median * 1e6:.0f}",
        f"{figures.p99 * 1e6:.0f}",
        f"{figures.bandwidth / 1e9:.1f}",
        f"{figures.operations / 1e12:.3f}",
        f"{fraction.median:.2f}",
        f"{fraction.p10:.2f}–{fraction.p90:.2f}",
        f"{figures.mean_fraction.median:.2f}",
        "memory" if figures.memory_bound else figures.unit,
        f"{result.tail:.2f}",
        "–" if figures.read_tail is None else f"{figures.read_tail:.2f}",
        "–" if ratio is None else f"{ratio:.1f}",
    )


def ceiling_cells(report: Report) -> list[tuple[str, ...]]:
    """Rows under ``CEILING_HEADER``: memory, then the units."""
    table = report.ceilings
    rows: list[tuple[str, ...]] = [
        (
            f"DRAM read, {table.threads} threads",
            f"{table.dram[1] / 1e9:.1f} GB/s",
            f"{table.dram[table.threads] / 1e9:.1f} GB/s",
            "",
        )
    ]
    for name, peak in table.peaks.items():
        rows.append(
            (
                name,
                f"{peak.one / 1e12:.3f} Top/s",
                f"{peak.all / 1e12:.3f} Top/s",
                f"{peak.per_cycle:.0f}",
            )
        )
    return rows


def remarks(report: Report) -> list[str]:
    """Sentences under the tables."""
    lines = []
    if report.on_core < _QUIET:
        lines.append(
            f"This host is busy: the threads that measured its ceilings had a core for "
            f"{report.on_core:.0%} of the time. Take none of these figures for the kernels'."
        )
    for isa, cost in report.overheads.items():
        lines.append(
            f"An empty call of {isa} takes {cost.native_us:.1f} µs (p99 {cost.native_p99_us:.1f}), "
            f"{cost.python_us:.1f} through the Python face; timing alone {cost.timer_us:.2f}."
        )
    for scaling in report.scalings:
        many = scaling.many
        lines.append(
            f"{many.shape.name} {many.format} {many.isa}, {many.tokens} tokens, from "
            f"{scaling.few.threads} to {many.threads} threads: "
            f"{scaling.of_curve:.2f} of the DRAM curve."
        )
    lines += [_busy_remark(row, row.busy) for row in report.results if row.busy is not None]
    return lines + list(report.notes)


def _busy_remark(row: Result, busy: BusyCore) -> str:
    return (
        f"{row.shape.name} {row.format} {row.isa}, {row.tokens} tokens: with one of {row.threads} "
        f"cores taken, {busy.kept:.2f} of the speed is left, {busy.kept / busy.of:.2f} of what the "
        "other cores can do."
    )


def markdown(report: Report) -> str:
    """A page for docs/results."""
    cache = report.host.last_level_cache / (1 << 20)
    lines = [
        f"{report.host.cpu}, {report.ceilings.core_hz / 1e9:.2f} GHz, {cache:.0f} MiB of cache.",
        "",
        *_markdown_table(CEILING_HEADER, CEILING_ALIGN, ceiling_cells(report)),
        "",
        *_markdown_table(HEADER, ALIGN, [cells(result) for result in report.results]),
        "",
        *(f"- {line}" for line in remarks(report)),
    ]
    return "\n".join(lines) + "\n"


def _markdown_table(header: tuple[str, ...], align: str, rows: list[tuple[str, ...]]) -> list[str]:
    rule = ["--:" if side == "r" else "---" for side in align]
    return [f"| {' | '.join(row)} |" for row in (header, tuple(rule), *rows)]
