"""What prefill.py measured, and what follows from it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ktd.bench.summary import Summary

AIM = 0.85


@dataclass(frozen=True, slots=True)
class Bound:
    """The aim, and how a server does against it, by one way to count a prefill's other work.

    Attributes:
        what: That way.
        other_seconds: Taken off each prompt's time: what remains are the experts.
        cpu: Tokens per second where the CPU computes every expert without a slot.
        link: Of the link alone.
        dram: Of DRAM alone.
        ratios: Tokens per second of each server over the smaller bound, of each run.
    """

    what: str
    other_seconds: float
    cpu: float
    link: float
    dram: float
    ratios: dict[str, Summary]

    @property
    def side_by_side(self) -> float:
        """Bound (a): CPU and link together."""
        return self.cpu + self.link

    @property
    def least(self) -> float:
        """The bound that counts."""
        return min(self.side_by_side, self.dram)


@dataclass(frozen=True, slots=True)
class Figures:
    """All of one run.

    Attributes:
        tokens: Of a prompt.
        absent_bytes: Of the experts that have no slot.
        link: Bytes per second from host to device; None without a GPU.
        dram: Bytes per second of a read loop.
        kernel_seconds: SGLang's expert kernels, all layers; None: not measured.
        seconds: To the first token, of each run, by server: ``cpu``, ``slots``, and with a GPU
            ``streamed`` and ``share``.
    """

    tokens: int
    absent_bytes: int
    link: float | None
    dram: float
    kernel_seconds: float | None
    seconds: Mapping[str, Sequence[float]]

    def bounds(self) -> list[Bound]:
        """By each way to count, the one that leaves the experts least time last.

        A way that leaves some server no time for them counts nothing and is left out: slots in host
        memory are slower than the experts beside them.
        """
        slots = statistics.median(self.seconds["slots"])
        ways = [("with all else that a prefill does", 0.0)]
        if self.kernel_seconds is not None:
            ways.append(("without what is no expert's", slots - self.kernel_seconds))
        ways.append(("without a prefill with all in slots", slots))
        shortest = min(min(found) for name, found in self.seconds.items() if name != "slots")
        return [self._bound(what, other) for what, other in ways if other < shortest]

    def _bound(self, what: str, other: float) -> Bound:
        cpu = self.tokens / (statistics.median(self.seconds["cpu"]) - other)
        link = 0.0 if self.link is None else self.tokens * self.link / self.absent_bytes
        dram = self.tokens * self.dram / self.absent_bytes
        least = min(cpu + link, dram)
        ratios = {
            name: Summary.of([self.tokens / (second - other) / least for second in seconds])
            for name, seconds in self.seconds.items()
            if name != "slots"
        }
        return Bound(what, other, cpu, link, dram, ratios)

    def as_json(self) -> dict[str, Any]:
        """For a file."""
        return {
            "tokens": self.tokens,
            "absent_bytes": self.absent_bytes,
            "link_bytes_per_second": self.link,
            "dram_bytes_per_second": self.dram,
            "kernel_seconds": self.kernel_seconds,
            "first_token_seconds": {name: list(found) for name, found in self.seconds.items()},
            "bounds": [
                {
                    "what": bound.what,
                    "other_seconds": bound.other_seconds,
                    "cpu_tokens_per_second": bound.cpu,
                    "link_tokens_per_second": bound.link,
                    "a_tokens_per_second": bound.side_by_side,
                    "b_tokens_per_second": bound.dram,
                    "ratios": {
                        name: [ratio.low, ratio.median, ratio.high]
                        for name, ratio in bound.ratios.items()
                    },
                }
                for bound in self.bounds()
            ],
        }


def report(figures: Figures) -> str:
    """Markdown."""
    lines = ["", "| server | ms to the first token | tokens/s |", "| --- | --: | --: |"]
    for name, seconds in figures.seconds.items():
        times = Summary.of([1e3 * second for second in seconds]).text(0)
        rates = Summary.of([figures.tokens / second for second in seconds]).text(0)
        lines.append(f"| {name} | {times} | {rates} |")
    link = "none" if figures.link is None else f"{figures.link / 1e9:.1f} GB/s"
    kernels = figures.kernel_seconds
    alone = "not measured" if kernels is None else f"{1e3 * kernels:.0f} ms"
    lines.append("")
    lines.append(
        f"- {figures.tokens} tokens; experts without a slot {figures.absent_bytes / 1e9:.2f} GB; "
        f"link {link}; DRAM {figures.dram / 1e9:.1f} GB/s; expert kernels alone {alone}"
    )
    for bound in figures.bounds():
        lines.append(
            f"- {bound.what} ({1e3 * bound.other_seconds:.0f} ms taken off): (a) CPU "
            f"{bound.cpu:.0f} + link {bound.link:.0f} = {bound.side_by_side:.0f}, (b) DRAM "
            f"{bound.dram:.0f} tokens/s; of the smaller, aim {AIM}:"
        )
        lines += [f"  - {name} {ratio.text(3)}" for name, ratio in bound.ratios.items()]
    return "\n".join(lines)
