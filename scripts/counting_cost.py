"""What counting costs a decode step, against the same step of the same engine without counting.

Serves a model with every expert on the CPU and lets one stream decode. Of each two neighbouring
steps one counts, in an order drawn by lot: pairs, steps, tokens, bytes, and the look at the
recorder. What shows that the engine lives stays in both. So a step is compared with one of the
same process and moment.

Usage: .venv/bin/python scripts/counting_cost.py [MODEL] [--steps N]
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

from ktd.app.daemon import serve  # noqa: E402  # the tests' daemon is found through the line above
from ktd.config.sources import from_process  # noqa: E402
from ktd.rankfile import Word  # noqa: E402
from ktd.sgl import host, seam  # noqa: E402
from tests.live import LiveDaemon  # noqa: E402

TIMES = "KTD_TEST_COUNTING_TIMES"
BAR = 0.5
TOKENS = 250
WARM_UP = 50
DRAWS = 400


def patch(times: Path) -> None:
    """Makes this process's scheduler count half of its steps and write how long each took."""
    choose = random.Random(1)  # noqa: S311
    order: list[bool] = []
    original = seam.SchedulerHooks.around_forward
    file = times.open("w", buffering=1 << 12)

    def around_forward(
        hooks: Any, forward: Callable[..., Any], runner: Any, batch: Any, *args: Any, **kwargs: Any
    ) -> Any:
        # torch-heavy, and there when a step runs.
        from ktd.experts.pool import split  # noqa: PLC0415

        rank = hooks._rank  # noqa: SLF001 - what is measured is in there
        if rank is None or not batch.forward_mode.is_decode():
            return original(hooks, forward, runner, batch, *args, **kwargs)
        if not order:
            order.extend(choose.sample((True, False), 2))
        counts = order.pop()
        if not counts:

            def end_step(*, tokens: int) -> None:
                del tokens
                rank.file.words[Word.IN_STEP] = 0
                rank.file.beat()

            rank.route = lambda _position, ids, table: split(ids, table)
            rank.end_step = end_step
        begin = time.perf_counter_ns()
        result = original(hooks, forward, runner, batch, *args, **kwargs)
        took = time.perf_counter_ns() - begin
        if not counts:
            del rank.route, rank.end_step
        file.write(f"{int(counts)} {took}\n")
        return result

    seam.SchedulerHooks.around_forward = around_forward  # type: ignore[method-assign]


def measure(model: str, steps: int) -> list[tuple[int, int]]:
    """Nanoseconds of neighbouring decode steps: one that counts, one that does not."""
    daemon = LiveDaemon(
        *("--gpu-experts-ratio", "0", "--max-total-tokens", "16384"),
        model=model,
    )
    times = daemon.base / "times"
    daemon.environment[TIMES] = str(times)
    daemon.command[1:3] = [str(Path(__file__).resolve())]
    with daemon:
        for _ in range(-(-steps // TOKENS)):
            body = {"prompt": "And it came to pass", "max_tokens": TOKENS, "ignore_eos": True}
            daemon.post("/v1/completions", {"model": "default", **body}, timeout=600)
        time.sleep(1)
        # The last line may be written in part only.
        lines = times.read_text().splitlines()[WARM_UP:-1]
    pairs = []
    for one, other in zip(lines[::2], lines[1::2], strict=False):
        found = {line[0]: int(line[2:]) for line in (one, other)}
        pairs.append((found["1"], found["0"]))
    return pairs


def cost(pairs: list[tuple[int, int]]) -> float:
    """How much longer a step takes that counts, in per cent of one that does not."""
    longer = statistics.median(counted - uncounted for counted, uncounted in pairs)
    return 100 * longer / statistics.median(uncounted for _, uncounted in pairs)


def main() -> int:
    """Measures, prints, and returns 1 if the bar is not met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default=str(ROOT / "models/ktd-tiny"))
    parser.add_argument("--steps", type=int, default=6000, help="decode steps (default: 6000)")
    args = parser.parse_args()
    pairs = measure(args.model, args.steps)
    found = cost(pairs)
    # Bootstrap: what other steps of the same kind could have given.
    draw = random.Random(1)  # noqa: S311
    again = sorted(cost(draw.choices(pairs, k=len(pairs))) for _ in range(DRAWS))
    base = statistics.median(uncounted for _, uncounted in pairs)
    print(f"{len(pairs)} pairs of decode steps; one without counting takes {base / 1e6:.2f} ms")
    low, high = again[DRAWS // 40], again[-DRAWS // 40]
    print(f"counting adds {found:+.2f} % (95 %: {low:+.2f} to {high:+.2f})")
    print(f"bar: {BAR} % of a decode step; {'met' if found <= BAR else 'NOT met'}")
    return int(found > BAR)


def run() -> int:
    """This file is the daemon and its engine host, too: SGLang's scheduler imports it again."""
    if sys.argv[1:2] == ["host"]:
        return host.main()
    if sys.argv[1:2] != ["serve"]:
        return main()
    command = (sys.executable, str(Path(__file__).resolve()), "host")
    return serve(from_process(sys.argv[2:]), command=command)


if __name__ == "__mp_main__" and TIMES in os.environ:
    patch(Path(os.environ[TIMES]))
if __name__ == "__main__":
    sys.exit(run())
