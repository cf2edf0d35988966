"""The daemon of `ktd bench table`: nobody else starts it, and it ends with the bench."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from ktd.bench.table.routing import Routing, RoutingFile
from ktd.config.options import OPTIONS
from tests.cli.running import environment
from tests.live import MODEL, LiveDaemon

MODULE = "ktd.app.bench_daemon"
ONLY = "this daemon is started by ktd bench table alone"
# Which experts every token of a layer chooses: not what ktd-tiny's router would.
CHOSEN = [[1 + layer, 9, 17, 30 - layer] for layer in range(6)]


def test_no_option_of_ktd_serve_leads_to_it():
    """Neither a flag nor a variable nor a key of ktd.toml."""
    words = {word for option in OPTIONS for word in (option.name, option.variable, *option.flags)}
    assert [word for word in words if "bench" in word.lower() or "routing" in word.lower()] == []


@pytest.mark.parametrize("line", ["", "nonsense\n", "{}\n", "[1]\n"])
def test_it_does_not_start_without_the_benchs_pipe(line, tmp_path):
    """As from a unit, whose standard input is empty, or by hand."""
    command = [sys.executable, "-m", MODULE, str(MODEL), "--state-dir", str(tmp_path)]
    done = subprocess.run(
        command, input=line, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert ONLY in done.stderr


class BenchDaemon(LiveDaemon):
    """As a bench starts it, with a pipe."""

    def __init__(self, folder, *args, run_id="of this run", keep_cpu_path=True):
        super().__init__(*args)
        ids = np.tile(np.array(CHOSEN, np.int16), (50, 1, 1))
        known = np.zeros((6, 32), np.int64)
        routing = Routing("stationary", "test", ids, known)
        RoutingFile(folder / "routing.npz", "of this run", {"stationary": routing})
        about = {"routing": str(folder / "routing.npz"), "run_id": run_id}
        self.line = json.dumps(about | {"keep_cpu_path": keep_cpu_path}).encode()
        self.command[1:4] = ["-m", MODULE]

    def spawn(self):
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env=self.environment,
                cwd=self.base,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.process.stdin.write(self.line + b"\n")
        self.process.stdin.flush()
        return self.process

    def close(self):
        super().close()
        self.process.stdin.close()


@pytest.mark.engine
def test_its_engine_takes_the_benchs_routing_says_so_and_ends_with_it(tmp_path):
    """Every counted pair is one of the file's; full layers give up slots; the pipe is the leash."""
    with BenchDaemon(tmp_path, "--gpu-experts-ratio", "1") as daemon:
        reasons = {row["reason"]: row["message"] for row in daemon.ktd_json("status")["conditions"]}
        assert "answers have no meaning" in reasons["BENCH_ROUTING"]
        body = {"model": "x", "prompt": "And it came to pass", "max_tokens": 20, "ignore_eos": True}
        daemon.post("/v1/completions", body)
        for row, chosen in zip(daemon.ktd_json("stats")["layers"], CHOSEN, strict=True):
            counts = np.array(row["counts"])
            assert sorted(np.flatnonzero(counts)) == sorted(chosen)
            assert len(set(counts[chosen])) == 1
        done = daemon.ktd("placement", "apply", "--strategy", "uniform", "--yes")
        assert done.returncode == 0, done.stderr
        daemon.process.stdin.close()
        assert daemon.process.wait(timeout=40) == 0
        assert daemon.wait_gone() == set()


@pytest.mark.engine
def test_an_engine_refuses_routing_of_another_run(tmp_path):
    """A file that was left lying about turns nothing on."""
    daemon = BenchDaemon(tmp_path, run_id="of another run")
    with pytest.raises(AssertionError, match="id of another run"):
        with daemon:
            pass
