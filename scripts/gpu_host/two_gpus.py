"""Tensor parallel over two GPUs beside one: the DRAM bandwidth of the CPU experts, and decode.

    engine.sh run python3 scripts/gpu_host/two_gpus.py FOLDER [--model MODEL] [SERVE OPTION ...]

Two real engines with no expert in a slot, one rank with all the cores and two ranks with half of
them each, serve the same model and take turns. A pool's calls are in its rank file with begin, end
and bytes; see pool_rates.py. Plain read loops on the same cores, in one process and in two at once,
say what the memory gives. Without MODEL one is generated: real shape, answers without meaning.
With --same-memory FOLDER, a tmpfs (mounted with huge=always, as the stores' own memory has huge
pages), both engines have their experts on the very same pages: a virtual host's memory need not be
equally fast everywhere.
Leaves two_gpus.json, two_gpus.md and the daemons' logs in FOLDER. Stops at the first failure; exit
status 1 as well if a bar is missed.
KTD_TEST_DEVICE=cpu runs it without GPUs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pool_rates import PoolRate, RankCalls
from read_loops import median_gb, read_at_once

from ktd.bench.decode import measure_decode
from ktd.bench.servers import RunningServer, running_server
from ktd.bench.summary import Summary
from ktd.sgl.cores import cores_allowed, pool_cores
from tests.device import on_gpu
from tests.live import LiveDaemon

RANKS = (1, 2)
BAR = 0.95
_PROMPT = "And it came to pass in those days, that"
# Small engines, quick starts. FlashInfer's fused all-reduce would be compiled at the start and may
# take NVLink multicast, which such a host need not give.
_ON_GPU = (
    *("--attention-backend", "triton", "--sampling-backend", "pytorch"),
    *("--grammar-backend", "none", "--mem-fraction-static", "0.5", "--max-total-tokens", "16384"),
    *("--max-running-requests", "16", "--cuda-graph-max-bs-decode", "8"),
    *("--chunked-prefill-size", "2048", "--enforce-disable-flashinfer-allreduce-fusion"),
)
_FILE = "KTD_SAME_MEMORY"
_SAME_MEMORY = Path(__file__).resolve().parent / "same_memory"
_GIB = 1 << 30
_TOUCHED = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
_BEGAN = time.monotonic()


def say(text: str) -> None:
    """Prints a line at once."""
    print(f"{text} ({time.monotonic() - _BEGAN:.0f} s)", flush=True)


@dataclass
class Measured:
    """One number of streams: what each run gave, by ranks.

    Attributes:
        tokens_per_second: Of all streams together.
        rates: Of the pools.
        layers: Bytes a second of each layer in the last run.
    """

    tokens_per_second: dict[int, list[float]] = field(
        default_factory=lambda: {ranks: [] for ranks in RANKS}
    )
    rates: dict[int, list[PoolRate]] = field(default_factory=lambda: {ranks: [] for ranks in RANKS})
    layers: dict[int, list[float]] = field(default_factory=dict)

    def ratio(self) -> Summary:
        """Bandwidth of two ranks by that of one, run by run."""
        one, two = (self.rates[ranks] for ranks in RANKS)
        pairs = zip(one, two, strict=True)
        return Summary.of([b.bytes_per_second / a.bytes_per_second for a, b in pairs])

    def speed_up(self) -> Summary:
        """The same of tokens a second."""
        one, two = (self.tokens_per_second[ranks] for ranks in RANKS)
        return Summary.of([b / a for a, b in zip(one, two, strict=True)])

    def bandwidth(self, ranks: int) -> Summary:
        """GB/s."""
        return Summary.of([rate.bytes_per_second / 1e9 for rate in self.rates[ranks]])

    def paired(self, ranks: int) -> Summary:
        """GB/s by the longest of each layer's calls: without what one rank began later."""
        found = self.rates[ranks]
        return Summary.of([rate.num_bytes / rate.longest / 1e9 for rate in found])


class Engine:
    """A daemon that serves, and the calls of its ranks' pools."""

    def __init__(self, daemon: LiveDaemon, server: RunningServer, ranks: int) -> None:
        self.ranks = ranks
        self._server = server
        self._calls = RankCalls(daemon.runtime_dir, ranks)
        self._layers = len(daemon.ktd_json("placement", "get")["layers"])
        hellos = [hello for file in self._calls.files if (hello := file.hello()) is not None]
        self.pids = [hello["pid"] for hello in hellos]
        self.pools = [{name: h[name] for name in ("threads", "isa", "device")} for h in hellos]

    def measure(self, measured: Measured, batch: int, tokens: int) -> None:
        """One run of so many streams; the pools' calls while it warms up count as well."""
        self._calls.mark()
        rates = measure_decode(
            [self._server],
            prompt=_PROMPT,
            tokens=tokens,
            runs=1,
            batch=batch,
            progress=lambda _: None,
        )
        measured.tokens_per_second[self.ranks] += rates[self._server.name]
        measured.rates[self.ranks].append(self._calls.rate(batch))
        measured.layers[self.ranks] = self._calls.layer_rates(batch, self._layers)


@contextlib.contextmanager
def serving(
    model: Path, ranks: int, folder: Path, options: Sequence[str], env: dict[str, str]
) -> Iterator[Engine]:
    """An engine of so many ranks with no expert in a slot."""
    arguments = ("--gpu-experts-ratio", "0", "--tp", str(ranks))
    daemon = LiveDaemon(*arguments, *(_ON_GPU if on_gpu() else ()), *options, model=model, env=env)
    try:
        daemon.start()
        with running_server(daemon.socket) as server:
            engine = Engine(daemon, server, ranks)
            say(f"- {ranks} rank(s) serve; pools: {json.dumps(engine.pools)}")
            print(daemon.ktd("status").stdout, flush=True)
            yield engine
    finally:
        (folder / f"daemon-{ranks}.log").write_text(daemon.tail(4000))
        daemon.close()


def measure_in_turn(
    engines: Sequence[Engine], batches: Sequence[int], tokens: int, runs: int
) -> dict[int, Measured]:
    """All runs, the engines' order turned round each time: whatever else happens meets both."""
    found = {batch: Measured() for batch in batches}
    for batch, measured in found.items():
        for run in range(runs):
            for engine in engines if run % 2 == 0 else reversed(engines):
                engine.measure(measured, batch, tokens)
        say(f"- {batch} stream(s): measured")
    return found


@contextlib.contextmanager
def same_memory(folder: Path | None, num_bytes: int) -> Iterator[dict[str, str]]:
    """A file for the experts of both engines; what their environment has to say of it."""
    if folder is None:
        yield {}
        return
    paths = [str(_SAME_MEMORY), os.environ.get("PYTHONPATH", "")]
    with tempfile.NamedTemporaryFile(dir=folder, prefix="experts-") as opened:
        opened.truncate(num_bytes)
        yield {_FILE: opened.name, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def shared_pages(engines: Sequence[Engine], env: Mapping[str, str]) -> dict[str, Any]:
    """What of the file is there, and how much of the host's shared memory is in huge pages.

    Raises:
        RuntimeError: A rank has its experts somewhere else.
    """
    if not env:
        return {}
    for pid in (pid for engine in engines for pid in engine.pids):
        if env[_FILE] not in Path(f"/proc/{pid}/maps").read_text():
            raise RuntimeError(f"the rank with pid {pid} does not map {env[_FILE]}")
    lines = Path("/proc/meminfo").read_text().splitlines()
    found = dict(line.split(":") for line in lines if line.startswith("Shmem"))
    pages = {name: " ".join(value.split()) for name, value in found.items()}
    return {"file_bytes": Path(env[_FILE]).stat().st_blocks * 512, **pages}


def measure(
    model: Path, args: argparse.Namespace, options: Sequence[str], env: dict[str, str]
) -> dict[int, Measured]:
    """With both engines alive, or one after the other where they do not fit beside each other."""
    if not args.one_by_one:
        with contextlib.ExitStack() as stack:
            # The two ranks first: SGLang wants GPUs that are equally free.
            engines = [
                stack.enter_context(serving(model, ranks, args.folder, options, env))
                for ranks in reversed(RANKS)
            ]
            args.pages = shared_pages(engines, env)
            say(f"- shared: {json.dumps(args.pages)}")
            return measure_in_turn(engines, args.batch, args.tokens, args.runs)
    found = {batch: Measured() for batch in args.batch}
    for ranks in reversed(RANKS):
        with serving(model, ranks, args.folder, options, env) as engine:
            args.pages = shared_pages([engine], env)
            for batch, measured in found.items():
                for _ in range(args.runs):
                    engine.measure(measured, batch, args.tokens)
    return found


def read_loops(num_bytes: int, seconds: float) -> dict[str, list[float]]:
    """Bytes a second of plain loops: on all cores and on the pools', in one process and in two."""
    cores = [core[0] for core in cores_allowed()]
    half = len(cores) // 2
    limit = pool_cores(None, 0, 1, quota=float("inf"), gpu=on_gpu()).threads or len(cores)
    halves = [pool_cores(None, rank, 2, quota=float("inf"), gpu=on_gpu()) for rank in range(2)]
    pools = [pool.cpus[: pool.threads] for pool in halves]
    plans: dict[str, Sequence[Sequence[int]]] = {
        "one process, all cores": [cores],
        "two processes, half the cores each": [cores[:half], cores[half:]],
        "one process, the pool's cores of one rank": [cores[:limit]],
        "two processes, the pools' cores of two ranks": pools,
    }
    found = {}
    for name, shares in plans.items():
        found[name] = read_at_once(shares, num_bytes, seconds=seconds, rounds=3)
        say(f"- read loop, {name}: {median_gb(found[name])} GB/s")
    return found


def grow_memory(num_bytes: int) -> None:
    """Touches memory once: some virtual hosts have it only then, and ktd counts what is there."""
    cores = len(cores_allowed())
    share = num_bytes // cores
    if share:
        touch = f"import mmap; mmap.mmap(-1, {share}, flags={_TOUCHED})"
        command = [sys.executable, "-c", touch]
        processes = [subprocess.Popen(command) for _ in range(cores)]
        statuses = [process.wait() for process in processes]
        if any(statuses):
            raise MemoryError(f"the host does not have {num_bytes / _GIB:.0f} GiB")
    say(f"- {num_bytes / _GIB:.0f} GiB touched")


def host() -> dict[str, Any]:
    """What the figures are of."""
    info = dict(
        line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line
    )
    nodes = sorted(Path("/sys/devices/system/node").glob("node[0-9]*/cpulist"))
    found: dict[str, Any] = {
        "cpu": next((value.strip() for key, value in info.items() if "model name" in key), ""),
        "cores": cores_allowed(),
        "numa_nodes": {path.parent.name: path.read_text().strip() for path in nodes},
        "pools": [
            asdict(pool_cores(None, rank, ranks, quota=float("inf"), gpu=on_gpu()))
            for ranks in RANKS
            for rank in range(ranks)
        ],
    }
    if on_gpu():
        for name, command in {
            "gpus": ("nvidia-smi", "-L"),
            "topology": ("nvidia-smi", "topo", "-m"),
        }.items():
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            found[name] = done.stdout.splitlines()
    return found


def report(loops: dict[str, list[float]], found: dict[int, Measured], model: str) -> str:
    """Markdown."""
    lines = ["| read loop | GB/s |", "|---|---|"]
    lines += [f"| {name} | {median_gb(rates)} |" for name, rates in loops.items()]
    lines += [
        f"\n{model}; no expert in a slot; one rank with all cores, then two with half each\n",
        "| streams | ranks | CPU experts, GB/s | by each layer's longest call | tokens/s |",
        "|---|---|---|---|---|",
    ]
    for batch, measured in found.items():
        lines += [
            f"| {batch} | {ranks} | {measured.bandwidth(ranks).text()} | "
            f"{measured.paired(ranks).text()} | "
            f"{Summary.of(measured.tokens_per_second[ranks]).text()} |"
            for ranks in RANKS
        ]
    lines += ["\nBy layer, GB/s in the last run:\n"]
    lines += [
        f"- {batch} stream(s), {ranks} rank(s): "
        + ", ".join(f"{rate / 1e9:.0f}" for rate in measured.layers[ranks])
        for batch, measured in found.items()
        for ranks in RANKS
    ]
    lines += ["\n| streams | bandwidth of two ranks : one | bar | | tokens/s of two : one |"]
    lines += ["|---|---|---|---|---|"]
    for batch, measured in found.items():
        ratio = measured.ratio()
        verdict = "reached" if ratio.median >= BAR else "MISSED"
        lines.append(
            f"| {batch} | {ratio.text(3)} | {BAR} | {verdict} | {measured.speed_up().text(3)} |"
        )
    return "\n".join(lines)


def as_json(found: dict[int, Measured]) -> dict[str, Any]:
    """Every run."""
    return {
        str(batch): {
            "tokens_per_second": measured.tokens_per_second,
            "ratio": asdict(measured.ratio()),
            "layers": measured.layers,
            "pools": {
                ranks: [
                    asdict(rate) | {"bytes_per_second": rate.bytes_per_second} for rate in rates
                ]
                for ranks, rates in measured.rates.items()
            },
        }
        for batch, measured in found.items()
    }


def made_model(folder: Path, shape: str, layers: int | None) -> Path:
    """A model whose experts are generated straight into the host store."""
    model = folder / "model"
    command = [sys.executable, "-m", "ktd", "make-model", "--shape", shape, str(model)]
    command += ["--experts", "generated", *(() if layers is None else ("--layers", str(layers)))]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return model


def main() -> int:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--shape", default="qwen3-30b-a3b")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument(
        "--batch", type=lambda text: [int(n) for n in text.split(",")], default=[1, 8]
    )
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--one-by-one", action="store_true", help="one engine at a time")
    parser.add_argument("--read-gib", type=float, default=8.0, help="memory that the loops read")
    parser.add_argument("--same-memory", type=Path, metavar="FOLDER", help="a tmpfs")
    parser.add_argument("--experts-gib", type=float, default=13.6, help="of the model, for it")
    parser.add_argument("--grow-gib", type=float, default=0.0, help="memory to touch beforehand")
    args, options = parser.parse_known_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    args.folder = args.folder.resolve()
    about = host()
    print(json.dumps(about), flush=True)
    grow_memory(int(args.grow_gib * _GIB))
    model = args.model or made_model(args.folder, args.shape, args.layers)
    say(f"- {model} is there")
    loops = read_loops(int(args.read_gib * _GIB), 0.3 if on_gpu() else 0.1)
    with same_memory(args.same_memory, int(args.experts_gib * _GIB)) as env:
        found = measure(model.resolve(), args, options, env)
    what = f"{args.model.name}" if args.model else f"{args.shape}, {args.layers} layers, generated"
    what += ", both engines on the same memory" if args.same_memory else ""
    text = report(loops, found, what)
    print(text)
    (args.folder / "two_gpus.md").write_text(text + "\n")
    below = [streams for streams, measured in found.items() if measured.ratio().median < BAR]
    figures = {
        "host": about,
        "model": what,
        "read_loops": loops,
        "shared_pages": args.pages,
        "decode": as_json(found),
        "bar": BAR,
        "streams_below_bar": below,
        "median_loop": {name: statistics.median(rates) for name, rates in loops.items()},
    }
    (args.folder / "two_gpus.json").write_text(json.dumps(figures, indent=1) + "\n")
    say("- done")
    return 1 if below else 0


if __name__ == "__main__":
    sys.exit(main())
