"""What `ktd simulate` prints and writes."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

from ktd.cli.quantities import bytes_text, count_text, share_text
from ktd.cli.tables import facts, table
from ktd.errors import ConfigError
from ktd.simulate.plot import budget_plot

if TYPE_CHECKING:
    from pathlib import Path

    from ktd.cli.terminal import Terminal
    from ktd.simulate.runs import Answer

_COLUMNS = (
    "policy",
    "budget",
    "phase",
    "tokens",
    "hit_rate",
    "clairvoyant_hit_rate",
    "dynamic_hit_rate",
    "moved_bytes",
    "clairvoyant_moved_bytes",
    "tokens_per_second",
)


def print_answer(terminal: Terminal, trace: str, found: Answer) -> None:
    """As people read it; ``trace`` is the file's name."""
    result = found.as_json()
    copied = found.question.machine.expert_bytes
    terminal.line(
        f"{trace}: {count_text(result['tokens'])} tokens, {found.workload.num_layers} layers "
        f"of {found.workload.num_experts} experts, {share_text(found.question.budget)} in slots"
    )
    terminal.line()
    best, kt = found.best, found.dynamic
    replayed = found.replayed
    rows = [
        (phase.name, count_text(phase.tokens), share_text(rate), share_text(kt_rate),
         share_text(best_rate), _ratio(rate, best_rate))
        for phase, rate, kt_rate, best_rate in zip(
            found.workload.phases, replayed.hit_rates, kt.hit_rates, best.hit_rates, strict=True
        )
    ]  # fmt: skip
    rows.append(
        ("all", count_text(replayed.tokens), share_text(replayed.hit_rate),
         share_text(kt.hit_rate), share_text(best.hit_rate), f"{found.ratio:.4f}")
    )  # fmt: skip
    header = ("phase", "tokens", found.question.policy, "KT's dynamic", "clairvoyant", "ratio")
    table(terminal, header, rows, "lrrrrr")
    terminal.line()
    facts(
        terminal,
        [
            ("one set for all phases", f"{share_text(best.static_hit_rate)} at best"),
            ("experts moved", _moved(replayed.moves, copied, best.moves)),
            ("  by KT's dynamic", _moved(kt.moves, copied, best.moves)),
            ("  by the clairvoyant", _moved(best.moves, copied, 0)),
            ("  after 2,000 tokens", f"{100 * found.late_share:.2f} % of all per 1,000 tokens"),
            ("predicted", f"{replayed.tokens_per_second:.1f} tokens/s, one stream"),
            ("  with KT's dynamic", f"{kt.tokens_per_second:.1f} tokens/s"),
        ],
    )


def _moved(moves: int, expert_bytes: int, best: int) -> str:
    times = f", {moves / best:.1f} × the clairvoyant's" if best else ""
    return f"{moves}, {bytes_text(moves * expert_bytes)}{times}"


def _ratio(rate: float, best: float) -> str:
    return f"{rate / best:.4f}" if best else "-"


def write_csv(path: Path, answers: list[Answer]) -> None:
    """A line per phase and one for all of them, for each budget.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(_COLUMNS)
            for found in answers:
                writer.writerows(_rows(found))
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror or error}).") from None


def _rows(found: Answer) -> list[tuple[object, ...]]:
    result = found.as_json()
    head = (result["policy"], result["budget"])
    rows: list[tuple[object, ...]] = [
        (*head, phase["name"], phase["tokens"], phase["hit_rate"], phase["clairvoyant_hit_rate"],
         kt_rate, "", "", "")
        for phase, kt_rate in zip(result["phases"], found.dynamic.hit_rates, strict=True)
    ]  # fmt: skip
    return [
        *rows,
        (*head, "all", result["tokens"], result["hit_rate"], result["clairvoyant_hit_rate"],
         found.dynamic.hit_rate, result["moved_bytes"], result["clairvoyant_moved_bytes"],
         result["tokens_per_second"]),
    ]  # fmt: skip


def write_plot(path: Path, answers: list[Answer]) -> None:
    """Hit rate against budget, as SVG.

    Raises:
        ConfigError: the file cannot be written.
    """
    policy = answers[0].question.policy
    budgets = [found.question.budget for found in answers]
    lines = {
        "clairvoyant": [found.best.hit_rate for found in answers],
        policy: [found.replayed.hit_rate for found in answers],
        "KT's dynamic": [found.dynamic.hit_rate for found in answers],
        "one static set": [found.best.static_hit_rate for found in answers],
    }
    drawn = budget_plot(
        f"{policy} on {answers[0].workload.tokens:,} tokens",
        {name: list(zip(budgets, rates, strict=True)) for name, rates in lines.items()},
    )
    try:
        path.write_text(drawn)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror or error}).") from None
