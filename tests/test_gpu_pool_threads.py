"""`scripts/gpu_host/pool_threads.py`: a server for each number of threads, beside the default."""

from __future__ import annotations

import contextlib
import importlib
import json
from pathlib import Path

import pytest

from ktd.bench.servers import RunningServer
from ktd.bench.timed_stream import TcpEndpoint

FOLDER = Path(__file__).resolve().parents[1] / "scripts" / "gpu_host"


@pytest.fixture(name="script")
def script_fixture(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("pool_threads")


def test_each_number_is_compared_with_the_default_run_by_run(script):
    lines = script.report({"2": [11.0, 12.0, 10.0], "default": [10.0, 20.0, 10.0]})
    assert lines[2].startswith("| 2 | 11.0 (10.0")
    assert "| 1.000 (0.600" in lines[2]
    assert "| 1.000 (1.000 to 1.000" in lines[3]


def test_servers_differ_in_their_threads_alone(script, tmp_path, monkeypatch, capsys):
    seen = {}

    @contextlib.contextmanager
    def started(_model, options, *, together):
        seen.update(options, together=together)
        yield {name: RunningServer("ktd", TcpEndpoint(1)) for name in options}

    def measured(servers, **_):
        return {server.name: [10.0 + number] for number, server in enumerate(servers)}

    monkeypatch.setattr(script, "started", started)
    monkeypatch.setattr(script, "measure_decode", measured)
    monkeypatch.setattr(script, "generated_model", lambda *_: Path("m"))
    assert script.main([str(tmp_path), "--threads", "1,2", "--device", "cpu", "--isa", "avx2"]) == 0
    own = seen["default"]
    assert "--isa" in own
    assert "--cpu-threads" not in own
    assert seen["2"] == (*own, "--cpu-threads", "2")
    assert not seen["together"], "servers without a GPU take the same cores for their slots"
    kept = json.loads((tmp_path / "pool_threads.json").read_text())
    assert kept["tokens_per_second"] == {"1": [10.0], "2": [11.0], "default": [12.0]}
    assert "| 1 | 10.0" in capsys.readouterr().out


def test_more_threads_than_cores_are_refused_before_anything_loads(script, tmp_path, capsys):
    with pytest.raises(SystemExit):
        script.main([str(tmp_path / "out"), "--threads", "1,4096"])
    assert "--threads 4096: this process has" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
