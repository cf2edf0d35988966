"""`scripts/gpu_host/link_ways.py`: its kernels compile, and bring on a GPU what was sent."""

import importlib
import sys
from pathlib import Path

import pytest

from ktd.cuda import nvrtc
from ktd.errors import CudaFailed

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts" / "gpu_host"


@pytest.fixture(name="link_ways")
def link_ways_fixture(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("link_ways")


def test_every_way_is_a_kernel_that_compiles(link_ways):
    """For the GPUs that have all of its instructions; CPU-only wheels of torch bring no NVRTC."""
    try:
        nvrtc._library()
    except CudaFailed as error:
        pytest.skip(str(error))
    cubin, _ = nvrtc.compile_cubin(link_ways.SOURCE, "link_ways.cu", "sm_90", headers={})
    assert all(way.encode() in cubin for way in (*link_ways.WAYS, "nothing"))


@pytest.mark.usefixtures("gpu")
def test_what_arrives_is_what_was_sent(link_ways, monkeypatch, capsys):
    """By every way, in every grid."""
    monkeypatch.setattr(sys, "argv", ["link_ways.py"])
    monkeypatch.setattr(link_ways, "REPLAYS", 4)
    assert link_ways.main() == 0
    assert capsys.readouterr().out.count("blocks") >= len(link_ways.WAYS)
