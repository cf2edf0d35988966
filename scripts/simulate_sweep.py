"""Prints the tables of docs/results/simulate.md: the bars, costs of copies, each figure varied.

Run as ``.venv/bin/python scripts/simulate_sweep.py``; takes about a minute.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from ktd.policy.settings import AdaptiveSettings  # noqa: E402
from ktd.simulate.runs import Answer, Question, answer, machine_of  # noqa: E402
from ktd.simulate.sources import read_workload  # noqa: E402
from ktd.simulate.workload import Workload  # noqa: E402
from tests.simulate import synthetic  # noqa: E402
from tests.simulate.test_robustness import FIGURES  # noqa: E402

QUESTION = Question(policy="adaptive", budget=0.25, machine=machine_of("cuda", 98_304, None))
_MADE = (
    synthetic.stationary, synthetic.shifting, synthetic.turning, synthetic.settling,
    synthetic.creeping, synthetic.partly, synthetic.wide,
)  # fmt: skip


def row(name: str, found: Answer, *more: str) -> tuple[str, ...]:
    """A line about one run."""
    moves = f"{found.replayed.moves / max(found.best.moves, 1):.1f}"
    return (name, *more, f"{found.ratio:.4f}", moves, f"{100 * found.late_share:.2f}")


def table(title: str, header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    """A table of Markdown."""
    print(f"\n{title}\n\n| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for cells in rows:
        print(f"| {' | '.join(cells)} |")


def recorded_tables(recorded: Workload) -> None:
    """The trace: the bars, the phases, costs, budgets, the rhythm of decisions."""
    header = ("ratio", "bytes ÷ clairvoyant's", "% moved per 1,000 tokens after 2,000")
    runs = [
        ("`frequency` of the right phase", {"policy": "frequency"}),
        ("**`adaptive`**", {}),
        ("`adaptive --copy-cost 0`", {"copy_cost": 0.0}),
        *((f"`dynamic`, prefills of {size}", {"policy": "dynamic", "prefill_chunk": size,
                                              "threshold": size}) for size in (512, 1024, 2048)),
        ("`off`", {"policy": "off"}),
    ]  # fmt: skip
    table(
        "The whole trace, a quarter of the experts in slots:",
        ("run", *header),
        (row(name, answer(recorded, replace(QUESTION, **changes))) for name, changes in runs),
    )
    found, free = answer(recorded, QUESTION), answer(recorded, replace(QUESTION, copy_cost=0.0))
    table(
        "By phase:",
        ("phase", "`adaptive`", "`adaptive --copy-cost 0`", "`dynamic` (512)", "clairvoyant"),
        (
            (phase.name, *(f"{rates[number]:.4f}" for rates in (
                found.replayed.hit_rates, free.replayed.hit_rates, found.dynamic.hit_rates,
                found.best.hit_rates)))
            for number, phase in enumerate(recorded.phases)
        ),
    )  # fmt: skip
    shuffled = recorded.phases[0].ids.copy()
    np.random.default_rng(5).shuffle(shuffled, axis=0)
    alone = [
        *recorded.phases[:3],
        replace(recorded.phases[0], name="prose, shuffled", ids=shuffled),
    ]
    table(
        "One phase alone, as a stationary workload:",
        ("phase", *header),
        (row(phase.name, answer(Workload((phase,), 32), QUESTION)) for phase in alone),
    )
    costs = (0, 4, 8, 16, 32, 64, 128, 256, 512)
    table(
        "What a copy is taken to cost, in pairs (128 is the default here):",
        ("cost", *header),
        (row(str(cost), answer(recorded, replace(QUESTION, copy_cost=cost))) for cost in costs),
    )
    table(
        "Budgets:",
        ("budget", *header),
        (
            row(f"{budget:g}", answer(recorded, replace(QUESTION, budget=budget)))
            for budget in (0.0625, 0.125, 0.25, 0.5, 0.75)
        ),
    )
    table(
        "Tokens between decisions:",
        ("tokens", *header),
        (
            row(str(every), answer(recorded, replace(QUESTION, every=every)))
            for every in (16, 64, 256, 500, 1024)
        ),
    )
    rows = []
    for name in FIGURES:
        value = getattr(AdaptiveSettings(), name)
        cells = [name, f"{value:g}"]
        for factor in (0.5, 2.0):
            settings = replace(AdaptiveSettings(), **{name: value * factor})
            one = answer(recorded, replace(QUESTION, settings=settings))
            cells.append(f"{one.ratio:.4f} at {one.replayed.moves / one.best.moves:.1f}")
        rows.append(tuple(cells))
    table("Each figure alone, halved and doubled:", ("figure", "default", "× 0.5", "× 2"), rows)


def main() -> None:
    """Prints everything."""
    recorded_tables(read_workload(ROOT / "models/routing-trace.npz"))
    rows = []
    for make in _MADE:
        for seed in (0, 1):
            workload = make(seed)
            for cost in (None, 0.0):
                found = answer(workload, replace(QUESTION, copy_cost=cost))
                shown = "default" if cost is None else "0"
                rows.append(
                    row(
                        make.__name__,
                        found,
                        str(seed),
                        shown,
                        f"{found.dynamic.hit_rate / found.best.hit_rate:.4f}",
                    )
                )
    table(
        "Drawn workloads (tests/simulate/synthetic.py), where the truth is known:",
        ("workload", "seed", "copy cost", "`dynamic`", "ratio", "bytes ÷ clairvoyant's", "% moved"),
        rows,
    )
    wide = np.random.default_rng(0)
    weights = -0.8 * np.log(np.arange(1, 257))
    ids = np.stack(
        [
            np.argpartition(-(wide.gumbel(size=(4000, 256)) + wide.permutation(weights)), 8)[:, :8]
            for _ in range(60)
        ],
        axis=1,
    ).astype(np.int16)
    workload = synthetic.workload(ids, experts=256)
    begin = time.perf_counter()
    found = answer(workload, QUESTION)
    seconds = time.perf_counter() - begin
    print(
        f"\n60 layers of 256 experts, 8 a token: {found.replayed.tokens / seconds:,.0f} tokens/s "
        "through `adaptive`, `dynamic` and the clairvoyant together."
    )


if __name__ == "__main__":
    main()
