"""The table of `ktd bench table` and `ktd bench swap` on one engine: a start takes minutes there.

    engine.sh run python3 scripts/gpu_host/table_and_swaps.py FOLDER MODEL [bench table option ...]
        [--swap-rates none,100,100/20] [--swap-seconds 4] [--swap-ratio 0.6] [--begin-after FILE]
        [--shifting-ratios 10] [option of ktd serve ...]

Swaps are measured before the cells, with --swap-ratio of all experts in slots and with the table's
own routing; 100/20 is 100 experts a second by 20 calls (4 otherwise), and --swap-rates "" leaves
them out. With --begin-after the engine starts at once and is measured when there is such a file:
what else the host has to do is done meanwhile, and --stop-after counts from then on. With
--shifting-ratios the rows where routing shifts are those only, of --ratios, and in that order; with
--stationary-columns the cells where it does not are those only, of --columns. Leaves table.json,
table.md, table.svg and swap-RATE.json in FOLDER.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ktd.bench.decode_load import DecodeLoad
from ktd.bench.link import link_bytes_per_second
from ktd.bench.swap import CALLS_PER_SECOND, measure_swaps
from ktd.bench.table import measurement
from ktd.bench.table.cells import SAME, Cell, planned
from ktd.bench.table.placements import COLUMNS, cell_placement
from ktd.bench.table.routing import SHIFTING
from ktd.cli import bench_table
from ktd.cli.program import run as ktd

_PAIRS = 3
_BEGAN = time.monotonic()


def say(text: str) -> None:
    """Prints a line at once."""
    print(f"{text} ({time.monotonic() - _BEGAN:.0f} s)", flush=True)


def rest_until(file: Path, load: DecodeLoad) -> None:
    """Returns when the file is there; until then nothing is decoded."""
    with load.paused():
        while not file.exists():
            time.sleep(0.2)


class WithSwaps(measurement.TableBench):
    """A table whose engines do one more thing before they end."""

    folder: Path
    rates: Sequence[tuple[float | None, float]]  # experts and calls a second
    seconds: float
    ratio: float
    begin_after: Path | None

    @contextlib.asynccontextmanager
    async def _started(self, *arguments: Any) -> AsyncIterator[Any]:
        async with super()._started(*arguments) as run:
            say("serving")
            if self.begin_after is not None:
                before = time.monotonic()
                await asyncio.to_thread(rest_until, self.begin_after, run.load)
                self.put_off(time.monotonic() - before)
            link = await asyncio.to_thread(link_bytes_per_second)
            say(f"the link alone {0 if link is None else link / 1e9:.1f} GB/s")
            cell = cell_placement(
                "uniform", self.ratio, self._engines.sizes, self._slots, np.zeros((0, 0), np.int64)
            )
            await run.place(dict(zip(self._engines.moe_layers, cell, strict=True)))
            for rate, calls in self.rates:
                result = await measure_swaps(
                    run.client,
                    run.load,
                    seconds=self.seconds,
                    pairs=_PAIRS,
                    rate=rate,
                    calls_per_second=calls,
                    progress=lambda _: None,
                )
                found = dataclasses.replace(result, link_bytes_per_second=link).as_json()
                found["request"] = self._request()
                name = f"{rate:g}-by-{calls:g}" if rate else "unlimited"
                (self.folder / f"swap-{name}.json").write_text(json.dumps(found))
                names = (
                    *("bytes_per_second", "swap_bytes_per_second", "experts_per_second"),
                    *("throughput_ratio", "p99_ratio", "move_call_ms", "alone"),
                )
                say(f"swaps, {name}: {json.dumps({k: found[k] for k in names})}")
            yield run

    def put_off(self, seconds: float) -> None:
        """The time is over so much later."""
        if self._deadline is not None:
            self._deadline += seconds

    def _request(self) -> dict[str, Any]:
        """What swaps were measured with."""
        engines = self._engines
        return {
            "model": engines.model.name,
            "options": " ".join(engines.arguments),
            "slots of a layer": self._slots,
            "share of experts in slots": self.ratio,
        }


def rate_of(text: str) -> tuple[float | None, float]:
    """``none``, ``100`` or ``100/20``: experts a second, and calls."""
    rate, _, calls = text.partition("/")
    return None if rate == "none" else float(rate), float(calls or CALLS_PER_SECOND)


def wanted(cell: Cell, args: argparse.Namespace) -> bool:
    """Whether a cell is one of the few that were asked for."""
    if cell.kind == SHIFTING:
        return not args.shifting_ratios or cell.ratio in args.shifting_ratios
    few = args.stationary_columns
    return not few or cell.column in few or cell.check or cell.ratio in SAME


def chosen(cells: Sequence[Cell], args: argparse.Namespace) -> list[Cell]:
    """Those that were asked for; rows of shifting routing as --shifting-ratios has them."""
    few = [cell for cell in cells if wanted(cell, args)]
    shifting = [cell for cell in few if cell.kind == SHIFTING]
    if args.shifting_ratios:
        shifting.sort(key=lambda cell: args.shifting_ratios.index(cell.ratio))
    rest = [cell for cell in few if cell.kind != SHIFTING]
    return [*rest, *shifting]


def ratios_of(text: str) -> list[float]:
    """Percentages."""
    return [float(number) / 100 for number in text.split(",") if number]


def columns_of(text: str) -> list[str]:
    """Names of columns."""
    names = [name for name in text.split(",") if name]
    if unknown := [name for name in names if name not in COLUMNS]:
        raise argparse.ArgumentTypeError(f"there is no column {unknown[0]!r}: {', '.join(COLUMNS)}")
    return names


def main() -> int:
    """As `ktd bench table`."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--swap-rates", default="none,100")
    parser.add_argument("--swap-seconds", type=float, default=4.0)
    parser.add_argument("--swap-ratio", type=float, default=0.6)
    parser.add_argument("--shifting-ratios", metavar="LIST", type=ratios_of)
    parser.add_argument("--stationary-columns", metavar="LIST", type=columns_of)
    parser.add_argument("--begin-after", type=Path, metavar="FILE")
    args, rest = parser.parse_known_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    WithSwaps.folder, WithSwaps.seconds = args.folder, args.swap_seconds
    WithSwaps.ratio, WithSwaps.begin_after = args.swap_ratio, args.begin_after
    bench_table.planned = lambda *plan: chosen(planned(*plan), args)
    rates = args.swap_rates.split(",") if args.swap_rates else []
    WithSwaps.rates = [rate_of(rate) for rate in rates]
    bench_table.TableBench = WithSwaps  # type: ignore[misc]
    files = ("--resume", f"{args.folder}/table.json", "--markdown", f"{args.folder}/table.md")
    return ktd(["bench", "table", *rest, *files, "--plot", f"{args.folder}/table.svg"])


if __name__ == "__main__":
    sys.exit(main())
