"""SGLang of a release that ktd has run on no GPU with: its runners are tried before the first step.

Without a GPU the pool computes slots, or SGLang's torch code, whose ids ktd itself removes.
"""

import pytest

from tests.acceptance.conftest import TOKENS
from tests.faults.live import FaultyDaemon
from tests.faults.points import TRIED, UNTRIED, WRONG
from tests.live import READY_SECONDS
from tests.skips import needs_gpu

pytestmark = [pytest.mark.engine, needs_gpu]
LAYERS = 6
SOME = ("--gpu-experts-ratio", "0.37", *TOKENS)
GRAPHS = [pytest.param((), id="graphs"), pytest.param(("--disable-cuda-graph",), id="eager")]


@pytest.mark.parametrize("graphs", GRAPHS)
def test_a_release_whose_runner_is_right_is_served(graphs):
    """With graphs, before they are captured; else in the first step of the warm-up."""
    with FaultyDaemon(*SOME, *graphs, runner=UNTRIED) as daemon:
        request = {"model": "default", "prompt": "The", "max_tokens": 8}
        request |= {"temperature": 0, "ignore_eos": True}
        answer = daemon.post("/v1/completions", request)
        assert answer["usage"]["completion_tokens"] == 8
        tried = (daemon.runtime_dir / TRIED).read_text().split()
    assert sorted(tried, key=int) == [str(layer) for layer in range(LAYERS)], "each once"


@pytest.mark.parametrize("graphs", GRAPHS)
def test_one_whose_runner_is_wrong_is_refused_in_a_sentence(graphs):
    """Instead of wrong answers."""
    daemon = FaultyDaemon(*SOME, *graphs, runner=WRONG)
    try:
        assert daemon.spawn().wait(timeout=READY_SECONDS) == 3
        said = daemon.log.read_text()
        assert "for pairs whose expert has no slot" in said
        assert "or start with --device cpu" in said
    finally:
        daemon.close()
