"""How fast one stream decodes with each number of pool threads, no expert in a slot.

    engine.sh run python3 scripts/gpu_host/pool_threads.py FOLDER [--layers 8] [--begin-after FILE]
        [--threads 10,12,13,14,15,16] [option of ktd serve ...]

A server for each number, of one model of Qwen3-30B-A3B's shape, BF16, generated weights, and one
that has the number that it chooses itself. They start together and are measured in turn, run by
run, each compared with the last, which has its own choice. With --begin-after the servers start at
once, and all is measured when there is such a file. Leaves pool_threads.json in FOLDER.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from together import ON_GPU, generated_model, rest_until, say, started

from ktd.bench.decode import measure_decode
from ktd.bench.summary import Summary
from ktd.cli.bench_options import counts
from ktd.sgl.cores import cores_allowed

_PROMPT = "And it came to pass in those days, that"
_OWN = "default"


def report(rates: dict[str, list[float]]) -> list[str]:
    """Markdown: tokens per second, and of the default's, run by run."""
    lines = ["| pool threads | tokens/s | of the default's |", "| --- | --: | --: |"]
    for name, found in rates.items():
        of_own = [mine / own for mine, own in zip(found, rates[_OWN], strict=True)]
        lines.append(f"| {name} | {Summary.of(found).text(1)} | {Summary.of(of_own).text(3)} |")
    return lines


def main(words: Sequence[str] | None = None) -> int:
    """Starts, measures, ends, reports."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", default="qwen3-30b-a3b")
    parser.add_argument("--layers", default="8")
    parser.add_argument("--threads", metavar="LIST", type=counts, default=(10, 12, 13, 14, 15, 16))
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--begin-after", type=Path, metavar="FILE")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    args, rest = parser.parse_known_args(words)
    cores = len(cores_allowed())
    if max(args.threads) > cores:
        parser.error(f"--threads {max(args.threads)}: this process has {cores} cores")
    gpu = args.device == "cuda"
    args.folder.mkdir(parents=True, exist_ok=True)
    model = generated_model(args.folder, args.shape, args.layers)
    common = (
        *("--device", args.device, *(ON_GPU if gpu else ())),
        *("--gpu-experts-ratio", "0", "--max-total-tokens", "8192", *rest),
    )
    options = {str(number): (*common, "--cpu-threads", str(number)) for number in args.threads}
    options[_OWN] = common
    with started(model, options, together=gpu) as servers:
        say(f"serving: {', '.join(servers)}")
        rest_until(args.begin_after)
        rates = measure_decode(
            [replace(server, name=name) for name, server in servers.items()],
            prompt=_PROMPT,
            tokens=args.tokens,
            runs=args.runs,
            progress=say,
        )
    found = {
        "model": f"{args.shape}, {args.layers} layers, generated weights",
        "arguments": {name: list(own) for name, own in options.items()},
        "tokens_per_second": rates,
    }
    (args.folder / "pool_threads.json").write_text(json.dumps(found, indent=1))
    print("\n".join(report(rates)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
