"""What a layer does on a GPU before its first step with a release of SGLang that none has seen."""

from __future__ import annotations

import importlib.util
from functools import partial

import pytest

torch = pytest.importorskip("torch", reason="layers are made of torch tensors")
if not torch.cuda.is_available():
    pytest.skip("needs a GPU that torch can use", allow_module_level=True)
if importlib.util.find_spec("sglang") is None:
    pytest.skip("SGLang is not installed here: pip install 'ktd[engine]'", allow_module_level=True)

from ktd.experts.weights import WeightFormat
from ktd.sgl import absent_ids
from ktd.sgl.cuda_formats import VERBATIM
from tests.sgl.test_gpu_layer import Layer
from tests.sgl.test_gpu_layer import runner as runner  # noqa: PLC0414 - a fixture of this module too


@pytest.mark.parametrize("in_slots", [1, 6, 15])
@pytest.mark.parametrize("form", VERBATIM)
def test_the_trial_of_an_untried_release_admits_the_runner(form, in_slots, runner):
    """Pairs that are not here give nothing at all, by themselves and beside an expert."""
    layer = Layer(form, in_slots, runner)
    compute = partial(layer._compute, layer.view)
    absent, present = absent_ids.trial(compute, layer.batch(absent_ids.ROWS), in_slots - 1)
    assert absent == 0 < present


def test_a_layer_is_tried_before_its_first_step_that_no_graph_captures(runner):
    """On a few of its rows; what is refused then has computed nothing."""
    layer = Layer(WeightFormat.BF16, 6, runner)
    tried = []

    def refuse(view, rows):
        tried.append((view, len(rows.hidden_states), len(rows.topk_output.topk_ids)))
        raise RuntimeError("refused")

    layer.step._trial = refuse
    with pytest.raises(RuntimeError, match="refused"):
        layer.hybrid(layer.batch(700), decode=False)
    layer.side.launched()  # or the pool would not sleep any more
    assert tried == [(layer.view, absent_ids.ROWS, absent_ids.ROWS)]
    dispatch = layer.batch(7)
    graph = torch.cuda.CUDAGraph()
    layer.hybrid(dispatch, decode=True)
    layer.side.idle()
    layer.step._trial = refuse
    with torch.cuda.graph(graph):
        layer.step(layer.view, dispatch)
    assert len(tried) == 1
