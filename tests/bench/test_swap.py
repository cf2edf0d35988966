"""`ktd bench swap`: what it moves, and that it does so on a real engine."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ktd.bench.link import link_bytes_per_second
from ktd.bench.swap import Exchange
from ktd.client import LayerPlacement, Placement
from ktd.errors import ConfigError
from tests.cli.running import environment, ktd_here
from tests.live import MODEL


def placement(*layers, experts=8):
    """Experts in slots, by layer."""
    return Placement(
        layers=[
            LayerPlacement(layer=n, num_experts=experts, slots=len(inside), gpu_experts=inside)
            for n, inside in enumerate(layers)
        ]
    )


def test_every_slot_gets_another_expert():
    """As far as there are others; full and empty layers stay as they are."""
    exchange = Exchange.of(placement([0, 1], [], [0, 1, 2, 3, 4, 5], range(8)))
    assert exchange.there == {0: (2, 3), 2: (2, 3, 4, 5, 6, 7)}
    assert exchange.reversed().there == {0: (0, 1), 2: (0, 1, 2, 3, 4, 5)}


def test_steps_lead_there_a_few_moves_at_a_time():
    """Each is a partial target; none moves more than was asked for."""
    exchange = Exchange.of(placement([0, 1, 2], [4, 5, 6], [1]))
    now = {layer: set(chosen) for layer, chosen in exchange.here.items()}
    steps = exchange.steps(2)
    for step in steps:
        moved = sum(len(set(chosen) - now[layer]) for layer, chosen in step.items())
        assert 1 <= moved <= 2
        assert all(len(chosen) == len(now[layer]) for layer, chosen in step.items())
        now |= {layer: set(chosen) for layer, chosen in step.items()}
    assert now == {layer: set(chosen) for layer, chosen in exchange.there.items()}
    assert len(steps) == 4
    assert exchange.steps(None) == [exchange.there]


def test_nothing_to_move_is_said():
    """With what to do."""
    with pytest.raises(ConfigError, match="--gpu-experts-ratio between 0 and 1"):
        Exchange.of(placement([], range(8)))


def test_calls_without_a_rate_are_refused(capsys):
    """There is nothing that they would divide."""
    result = ktd_here(capsys, "bench", "swap", str(MODEL), "--calls", "8")
    assert result.code == 2
    assert "--calls 8 divides a rate of experts into calls; give --rate too" in result.err


def test_the_link_is_measured_by_a_process_of_its_own(monkeypatch):
    """What it prints; nothing without a GPU, or where it fails."""
    if not Path("/dev/nvidia0").exists():
        pytest.importorskip("torch", reason="torch is not installed")
        assert link_bytes_per_second() is None
    outcomes = iter([(0, "5.4e10\n"), (0, ""), (1, "12\n")])

    def run(command, **_):
        code, text = next(outcomes)
        return subprocess.CompletedProcess(command, code, text, "")

    monkeypatch.setattr(subprocess, "run", run)
    assert [link_bytes_per_second() for _ in range(3)] == [5.4e10, None, None]


@pytest.mark.engine
@pytest.mark.parametrize("rate", [None, 40.0])
def test_experts_move_while_streams_decode(rate):
    """A whole run, as a user starts it; a rate is kept."""
    command = [sys.executable, "-m", "ktd", "bench", "swap", str(MODEL), "--json"]
    command += ["--gpu-experts-ratio", "0.25", "--batch", "2", "--seconds", "2", "--runs", "2"]
    command += [] if rate is None else ["--rate", f"{rate}"]
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert len(result["pairs"]) == 2
    assert (result["link_bytes_per_second"] is None) is not Path("/dev/nvidia0").exists()
    for pair in result["pairs"]:
        assert pair["num_bytes"] == pair["experts"] * result["expert_bytes"] > 0
        assert 0 < pair["swap_seconds"] < pair["seconds"]
        assert min(pair["busy"]["tokens"], pair["quiet"]["tokens"]) > 0
    if rate is not None:
        assert result["alone"] is None
        assert result["experts_per_second"]["median"] < 1.6 * rate
        return
    assert result["alone"]["num_bytes"] % result["expert_bytes"] == 0
    assert 0 < result["alone"]["swap_seconds"] < result["alone"]["seconds"]
