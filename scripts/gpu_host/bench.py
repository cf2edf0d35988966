"""Measures one engine on a GPU host: decode at several placements, long prefills, swaps.

    engine.sh run python3 scripts/gpu_host/bench.py FOLDER MODEL [--ratio R] [SERVE OPTION ...]

MODEL is a folder of `ktd make-model`; the daemon is started with R of the experts in slots, and
every measurement is a `ktd bench` command with `--running`. Leaves one JSON file a measurement, and
the daemon's log, in FOLDER; the output is Markdown. A step that fails is printed and the next one
goes on.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.live import LiveDaemon

STEP_SECONDS = 150


class Bench:
    """Commands against one daemon."""

    def __init__(self, daemon: LiveDaemon, model: Path, folder: Path) -> None:
        self._daemon = daemon
        self._model = model
        self._folder = folder
        self._seed = 0
        self._began = time.monotonic()
        self._random = random.Random(0)  # noqa: S311 - reproducible, no secret

    def say(self, text: str) -> None:
        """Prints a line at once."""
        print(f"{text} ({time.monotonic() - self._began:.0f} s)", flush=True)

    def measure(self, name: str, what: str, *options: str) -> Any:
        """One `ktd bench` command; None when it failed."""
        command = [sys.executable, "-m", "ktd", "bench", what, str(self._model), "--json", *options]
        command += ["--running", str(self._daemon.socket)]
        try:
            done = subprocess.run(
                command,
                env=self._daemon.environment,
                capture_output=True,
                text=True,
                timeout=STEP_SECONDS,
                check=True,
            )
        except subprocess.TimeoutExpired:
            self.say(f"- {name}: not done in {STEP_SECONDS} s")
            return None
        except subprocess.CalledProcessError as error:
            self.say(f"- {name} FAILED: {error.stderr[-600:]}")
            return None
        (self._folder / f"{name}.json").write_text(done.stdout)
        return json.loads(done.stdout)

    def decode(self, name: str, batches: str) -> None:
        """Tokens a second of all streams together."""
        found = self.measure(
            f"decode-{name}", "decode", "--batch", batches, "--tokens", "48", "--runs", "3"
        )
        if found is not None:
            self.say(f"- decode, {name}: {json.dumps(found)[:900]}")

    def prefill(self, name: str, tokens: str) -> None:
        """Tokens a second of a prompt."""
        self._seed += 1  # other prompts: the prefix cache has those of before
        found = self.measure(
            f"prefill-{name}",
            "prefill",
            *("--tokens", tokens, "--runs", "3", "--seed", str(self._seed)),
        )
        for result in (found or {}).get("results", []):
            self.say(f"- prefill, {name}: {json.dumps(result)[:500]}")

    def swap(self, name: str, *options: str) -> None:
        """Bytes a second, and what moving costs decoding."""
        found = self.measure(f"swap-{name}", "swap", "--seconds", "5", "--runs", "3", *options)
        if found is not None:
            self.say(f"- swap, {name}: {json.dumps(found)[:1200]}")

    def place(self, share: float) -> None:
        """Random experts in so much of each layer's slots."""
        placement = self._daemon.ktd_json("placement", "get")
        layers = [
            {
                "layer": layer["layer"],
                "gpu_experts": sorted(
                    self._random.sample(range(layer["num_experts"]), int(share * layer["slots"]))
                ),
            }
            for layer in placement["layers"]
        ]
        target = self._folder / "target.json"
        target.write_text(json.dumps({"layers": layers}))
        done = self._daemon.ktd("placement", "apply", "--file", str(target), "--yes", timeout=120)
        self.say(
            f"- {share:.0%} of the slots filled: {(done.stdout or done.stderr).splitlines()[:1]}"
        )


def main() -> None:
    """Starts, measures, ends."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--ratio", default="0.4")
    parser.add_argument("--prefill", default="1024,8000")
    parser.add_argument("--batch", default="1,8,32")
    args, rest = parser.parse_known_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    daemon = LiveDaemon(
        "--device", "cuda", "--gpu-experts-ratio", args.ratio, *rest, model=args.model
    )
    bench = Bench(daemon, args.model, args.folder)
    try:
        daemon.start()
        bench.say(f"## {args.model.name}, {args.ratio} of the experts in slots: serving")
        print(daemon.ktd("status").stdout)
        bench.decode("first placement", args.batch)
        bench.place(0)
        bench.decode("nothing in slots", args.batch)
        bench.prefill("nothing in slots", args.prefill)
        bench.place(1)
        bench.decode("all slots filled", args.batch)
        bench.prefill("all slots filled", args.prefill)
        bench.swap("unthrottled")
        bench.swap("100 a second", "--rate", "100")
        print(daemon.ktd("status").stdout)
    finally:
        (args.folder / "daemon.log").write_text(daemon.tail(4000))
        daemon.close()


if __name__ == "__main__":
    main()
