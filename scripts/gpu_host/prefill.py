"""Measures how fast long prompts are read, against what CPU and link could do side by side.

    engine.sh run python3 scripts/gpu_host/prefill.py FOLDER [--layers 12] [--begin-after FILE]
        [option of ktd serve ...]

Four servers of one model of Qwen3-30B-A3B's shape, BF16 or as --shape says, generated weights, a
tenth of its experts in slots, all started together and asked in turn, each time with another
prompt: the CPU computes what is in no slot; it is streamed; it is streamed with a share for the
CPU; and all experts in slots, for the time of everything else. In the same run: the link, DRAM, and
SGLang's kernels for BF16 experts alone. --tokens takes several lengths, which the same servers read
one after the other. Leaves prefill-TOKENS.json and each server's log in FOLDER. Three minutes on 16
cores. With --begin-after the servers start at once, and all is measured when there is such a file.

The aim is the smaller of (a) the CPU's rate and the link's, added, and (b) that at which DRAM gives
the experts that have no slot, each by the tokens of a prompt.

With --device cpu the streamed servers are left out, and FOLDER's figures are of what runs there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from prefill_figures import Figures, report
from together import ON_GPU, generated_model, rest_until, say, started

from ktd.bench.kernels.ceilings import HostCeilings
from ktd.bench.link import link_bytes_per_second
from ktd.bench.prompts import Prompts
from ktd.bench.servers import RunningServer
from ktd.bench.timed_stream import timed_completion
from ktd.cli.bench_options import counts
from ktd.model.facts import read_facts

_NEVER = "1000000000"  # tokens: so long a prefill never comes
# Of the CPU's share, which learns from passes and has settled after a dozen of them; two for the
# others, whose kernels compile.
_LEARNING = 24
_READ_BYTES = 2 << 30
_KERNEL_SECONDS = 90.0
_GPU_ARGUMENTS = (*ON_GPU, "--disable-cuda-graph")


def variants(ratio: str, *, gpu: bool) -> dict[str, tuple[str, ...]]:
    """Options of each server, by name."""
    some = ("--gpu-experts-ratio", ratio)
    if not gpu:
        return {"cpu": some, "slots": ("--gpu-experts-ratio", "1")}
    return {
        "cpu": (*some, "--gpu-prefill-token-threshold", _NEVER),
        "streamed": (*some, "--gpu-prefill-cpu-share=no"),
        "share": some,
        "slots": ("--gpu-experts-ratio", "1"),
    }


def log_of(server: RunningServer) -> Path:
    """What the daemon and its engine wrote."""
    if server.socket is None:
        raise ValueError(f"{server.name} is no server of this program")
    return server.socket.parents[1] / "ktd.log"


def absent_experts(server: RunningServer) -> int:
    """Experts without a slot, of all layers together."""
    command = [sys.executable, "-m", "ktd", "--socket", str(server.socket)]
    done = subprocess.run(
        [*command, "placement", "get", "--json"], capture_output=True, text=True, check=True
    )
    layers = json.loads(done.stdout)["layers"]
    return sum(layer["num_experts"] - layer["slots"] for layer in layers)


def kernel_seconds(model: Path, tokens: int) -> float | None:
    """SGLang's expert kernels for one layer, all experts on the GPU; None if they do not run."""
    program = Path(__file__).with_name("expert_kernels.py")
    try:
        done = subprocess.run(
            [sys.executable, str(program), str(model), str(tokens)],
            capture_output=True,
            text=True,
            timeout=_KERNEL_SECONDS,
            check=True,
        )
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
        say(f"the expert kernels alone were not measured: {error}: {(error.stderr or '')[-400:]}")
        return None
    return float(done.stdout.split()[-1])


def read_prompts(
    servers: dict[str, RunningServer],
    prompts: Callable[[], list[int]],
    *,
    runs: int,
    seconds: float,
) -> dict[str, list[float]]:
    """Seconds to the first token of ``runs`` prompts for each server, or fewer if time is over."""
    until = time.monotonic() + seconds
    for name, server in servers.items():
        for _ in range(_LEARNING if name == "share" else 2):
            first = timed_completion(server.endpoint, prompts(), 1).first
        say(f"{name}: warm, {first:.3f} s")
    found: dict[str, list[float]] = {name: [] for name in servers}
    for run in range(runs):
        if run and time.monotonic() > until:
            say(f"no time for more than {run} of {runs} runs")
            break
        for name, server in servers.items():
            found[name].append(timed_completion(server.endpoint, prompts(), 1).first)
    return found


def ceilings() -> tuple[float | None, float]:
    """Bytes a second from host to device, None without a GPU, and of a loop that reads DRAM."""
    link = link_bytes_per_second()
    host = HostCeilings(_READ_BYTES)
    host.sweep(lambda _: None)
    dram = host.table.dram[host.table.threads]
    say(f"link {0 if link is None else link / 1e9:.1f} GB/s, DRAM {dram / 1e9:.1f} GB/s")
    return link, dram


def divisions(log: str, tokens: int) -> list[str]:
    """What the engine says of each pass of so many tokens, divided between link and CPU."""
    found = (line.partition("PassTimes(")[2].partition(")")[0] for line in log.splitlines())
    return [times for times in found if times.startswith(f"tokens={tokens},")]


def main(words: Sequence[str] | None = None) -> int:
    """Starts, measures, ends, reports."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", default="qwen3-30b-a3b")
    parser.add_argument("--layers", default="12")
    parser.add_argument("--ratio", default="0.1")
    parser.add_argument("--tokens", metavar="LIST", type=counts, default=(8192,))
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="for each length; then no run begins"
    )
    parser.add_argument("--begin-after", type=Path, metavar="FILE")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    args, rest = parser.parse_known_args(words)
    gpu = args.device == "cuda"
    args.folder.mkdir(parents=True, exist_ok=True)
    model = generated_model(args.folder, args.shape, args.layers)
    facts = read_facts(model, device="cpu")
    layers, longest = len(facts.moe_layers), max(args.tokens)
    common = (
        *("--device", args.device, *(_GPU_ARGUMENTS if gpu else ())),
        *("--chunked-prefill-size", str(longest), "--max-total-tokens", str(5 * longest)),
        *rest,
    )
    # A server's own come last: those count, whatever else is given.
    options = {name: (*common, *own) for name, own in variants(args.ratio, gpu=gpu).items()}
    prompts = Prompts.of_model(model, seed=0)
    with started(model, options, together=gpu) as servers:
        say(f"serving: {', '.join(servers)}")
        rest_until(args.begin_after)
        link, dram = ceilings()
        absent = absent_experts(servers["cpu"])
        lengths = []
        for tokens in args.tokens:
            say(f"{tokens} tokens")
            ask = partial(prompts.tokens, tokens)
            seconds = read_prompts(servers, ask, runs=args.runs, seconds=args.seconds)
            known = gpu and facts.expert_format == "bf16"
            kernels = kernel_seconds(model, tokens) if known else None
            lengths.append(
                Figures(
                    tokens=tokens,
                    absent_bytes=absent * facts.expert_bytes,
                    link=link,
                    dram=dram,
                    kernel_seconds=None if kernels is None else layers * kernels,
                    seconds=seconds,
                )
            )
        logs = {
            name: log_of(server).read_text(errors="replace") for name, server in servers.items()
        }
    for name, log in logs.items():
        (args.folder / f"{name}.log").write_text(log)
    for figures in lengths:
        passes = divisions(logs["share"], figures.tokens) if gpu else []
        found: dict[str, Any] = {
            "model": f"{args.shape}, {layers} layers, generated weights",
            "arguments": {name: list(own) for name, own in options.items()},
            "absent_experts": absent,
            **figures.as_json(),
            "divided_passes": passes,
        }
        file = args.folder / f"prefill-{figures.tokens}.json"
        file.write_text(json.dumps(found, indent=1))
        print(report(figures))
        for line in passes[-3:]:
            print(f"- {line}")
        runs = statistics.median(map(len, figures.seconds.values()))
        print(f"- median of {runs:.0f} runs a server")
    if not gpu:
        print("- the streamed servers were left out: they need a GPU")
    say("done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
