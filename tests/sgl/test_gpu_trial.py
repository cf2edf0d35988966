"""What a layer does on a GPU before its first step with a release of SGLang that none has seen."""

from __future__ import annotations

import importlib.util
from functools import partial
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="layers are made of torch tensors")
if not torch.cuda.is_available():
    pytest.skip("needs a GPU that torch can use", allow_module_level=True)
if importlib.util.find_spec("sglang") is None:
    pytest.skip("SGLang is not installed here: pip install 'ktd[engine]'", allow_module_level=True)

from ktd.experts.weights import WeightFormat
from ktd.sgl import absent_ids
from ktd.sgl.absent_ids import Trials
from ktd.sgl.cuda_formats import VERBATIM
from ktd.sgl.dispatch_rows import rows_like
from tests.sgl.test_gpu_layer import TOLERANCES, Layer, error
from tests.sgl.test_gpu_layer import runner as runner  # noqa: PLC0414 - a fixture of this module too


@pytest.mark.parametrize("in_slots", [1, 6, 15])
@pytest.mark.parametrize("form", VERBATIM)
def test_the_trial_of_an_untried_release_admits_the_runner(form, in_slots, runner):
    """Pairs that are not here give nothing at all, by themselves and beside an expert."""
    layer = Layer(form, in_slots, runner)
    compute = partial(layer._compute, layer.view)
    for rows in absent_ids.ROWS:
        found = absent_ids.trial(compute, rows_like(layer.batch(1), rows), range(in_slots))
        assert found.absent == 0 < found.expert
        assert found.right, f"{rows} rows: {found}"


@pytest.mark.parametrize("in_slots", [0, 6])
@pytest.mark.parametrize("form", VERBATIM)
def test_what_streams_is_tried_with_its_first_piece(form, in_slots, runner):
    """Before it is computed; by itself where a layer has no slots."""
    layer = Layer(form, in_slots, runner)
    trials = Trials("0.9.9", layer.layer, ValueError, slots=in_slots > 0, pieces=True)
    layer.step._trials = trials
    dispatch = layer.batch(700)
    found = layer.hybrid(dispatch, decode=False, threshold=1)
    assert not trials.slots
    assert not trials.pieces
    assert error(found, layer.stock(dispatch)) < TOLERANCES[form]


def test_a_layer_is_tried_before_its_first_step_that_no_graph_captures(runner):
    """What is refused then has computed nothing."""
    layer = Layer(WeightFormat.BF16, 6, runner)
    tried = []

    def refuse(compute, rows):
        tried.append(len(rows.hidden_states))
        raise RuntimeError("refused")

    trials = layer.step._trials = SimpleNamespace(slots=True, pieces=False, try_slots=refuse)
    with pytest.raises(RuntimeError, match="refused"):
        layer.hybrid(layer.batch(700), decode=False)
    layer.side.launched()  # or the pool would not sleep any more
    assert tried == [700]
    dispatch = layer.batch(7)
    graph = torch.cuda.CUDAGraph()
    trials.slots = False
    layer.hybrid(dispatch, decode=True)
    layer.side.idle()
    trials.slots = True
    with torch.cuda.graph(graph):
        layer.step(layer.view, dispatch)
    assert tried == [700]
