"""`scripts/gpu_host/prefill.py`: what follows from its figures; and servers that start together."""

from __future__ import annotations

import contextlib
import importlib
import threading
import time
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "scripts" / "gpu_host"


@pytest.fixture(name="figures")
def figures_fixture(monkeypatch):
    """12.5 GB of experts without a slot, over a link of 50 GB/s."""
    monkeypatch.syspath_prepend(str(FOLDER))
    module = importlib.import_module("prefill_figures")

    def make(*, dram=120e9, kernels=0.02, streamed=(0.27, 0.28, 0.29)):
        return module.Figures(
            tokens=8000,
            absent_bytes=12_500_000_000,
            link=50e9,
            dram=dram,
            kernel_seconds=kernels,
            seconds={"cpu": [1.0], "streamed": streamed, "share": [0.25], "slots": [0.07]},
        )

    return module, make


def test_the_aim_is_cpu_and_link_side_by_side(figures):
    _, make = figures
    plain, experts, strict = make().bounds()
    assert plain.link == pytest.approx(8000 / 0.25)
    assert plain.cpu == pytest.approx(8000)
    assert plain.least == plain.side_by_side == pytest.approx(40_000)
    assert plain.ratios["share"].median == pytest.approx(8000 / 0.25 / 40_000)
    assert plain.ratios["streamed"].low == pytest.approx(8000 / 0.29 / 40_000)
    assert "slots" not in plain.ratios
    assert experts.other_seconds == pytest.approx(0.05)
    assert experts.ratios["share"].median == pytest.approx(40_000 / (32_000 + 8000 / 0.95))
    assert strict.other_seconds == pytest.approx(0.07)


def test_or_what_dram_gives_if_that_is_less(figures):
    _, make = figures
    bound = make(dram=60e9).bounds()[0]
    assert bound.least == bound.dram == pytest.approx(8000 * 60e9 / 12.5e9)


def test_a_way_that_leaves_no_time_for_experts_is_left_out(figures):
    _, make = figures
    assert [bound.other_seconds for bound in make(kernels=None, streamed=[0.06]).bounds()] == [0.0]


def test_everything_that_was_measured_is_printed_and_kept(figures):
    module, make = figures
    text = module.report(make())
    for word in ("12.50 GB", "50.0 GB/s", "120.0 GB/s", "20 ms", "share", "streamed", "(a)", "(b)"):
        assert word in text
    kept = make().as_json()
    assert kept["first_token_seconds"]["streamed"] == [0.27, 0.28, 0.29]
    assert len(kept["bounds"]) == 3


@pytest.mark.parametrize("together", [True, False])
def test_a_server_that_comes_after_another_has_failed_ends_too(monkeypatch, together):
    """And one that has not begun to start does not."""
    monkeypatch.syspath_prepend(str(FOLDER))
    servers = importlib.import_module("together")
    begun, ended, other = [], [], threading.Event()

    @contextlib.contextmanager
    def server(_model, arguments):
        begun.append(arguments)
        if arguments == "bad":
            assert not together or other.wait(10)
            raise RuntimeError("it does not start")
        other.set()
        time.sleep(0.3)
        yield arguments
        ended.append(arguments)

    monkeypatch.setattr(servers, "ktd_server", server)
    options = {"first": "bad", "second": "slow"}
    with (
        pytest.raises(RuntimeError, match="does not start"),
        servers.started(Path("m"), options, together=together),
    ):
        pass
    assert ended == (["slow"] if together else [])
    assert sorted(begun) == ["bad", *ended]


def test_passes_are_told_apart_by_their_tokens(monkeypatch):
    """One log has the passes of every length that was read."""
    monkeypatch.syspath_prepend(str(FOLDER))
    prefill = importlib.import_module("prefill")
    log = "\n".join(f'{{"event": "PassTimes(tokens={n}, layers=12)"}}' for n in (1024, 10240, 1024))
    assert prefill.divisions(log, 1024) == ["tokens=1024, layers=12"] * 2
    assert prefill.divisions(log, 2048) == []
