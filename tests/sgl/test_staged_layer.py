"""A hybrid layer on a GPU whose host memory the GPU cannot read: mapped, or quantised at load."""

import importlib.util
import random
import statistics

import pytest

torch = pytest.importorskip("torch", reason="layers are made of torch tensors")
if not torch.cuda.is_available():
    pytest.skip("needs a GPU that torch can use", allow_module_level=True)
if importlib.util.find_spec("sglang") is None:
    pytest.skip("SGLang is not installed here: pip install 'ktd[engine]'", allow_module_level=True)

from ktd.experts.weights import ExpertWeights, WeightFormat
from ktd.sgl.copier import Copier
from ktd.sgl.slot_source import PlainSource, QuantisedSource
from tests.sgl.test_copier import Outcomes
from tests.sgl.test_gpu_layer import EXPERTS, ROWS, TOLERANCES, Layer, error
from tests.sgl.test_gpu_layer import runner as runner  # noqa: PLC0414 - a fixture of this module too
from tests.sgl.test_staged_uploads import holds, mapped, quantised_with

CASES = [
    (WeightFormat.BF16, None),
    (WeightFormat.FP8_BLOCK, None),
    (WeightFormat.INT8, None),
    (WeightFormat.BF16, WeightFormat.INT8_WEIGHT),
    (WeightFormat.BF16, WeightFormat.INT4),
]
NAMES = [f"{form}-{'mapped' if wanted is None else wanted}" for form, wanted in CASES]


class StagedLayer(Layer):
    """Its store is quantised as ``wanted``, or in mapped files."""

    def __init__(self, form, wanted, in_slots, runner, folder):
        self._wanted, self._folder = wanted, folder
        super().__init__(form, in_slots, runner)

    def store(self, form):
        if self._wanted is None:
            weights = {n: t for n, t in self.host.items() if not n.endswith("scale")}
            # Scales are small and copied, so they are registered as ever.
            beside = {n: t.pin_memory() for n, t in self.host.items() if n.endswith("scale")}
            kept = mapped(weights, self._folder) | beside
            return ExpertWeights(form, **kept), PlainSource(kept)
        found, self.host = quantised_with(self.host, self._wanted)
        return ExpertWeights(self._wanted, **found), QuantisedSource(found, self._wanted)


@pytest.mark.parametrize("in_slots", [0, 6, 15, 16])
@pytest.mark.parametrize(("form", "wanted"), CASES, ids=NAMES)
def test_no_share_in_slots_changes_the_answer(form, wanted, in_slots, runner, tmp_path):
    """Slots hold what the CPU computes with, so both give what the runner gives of these values."""
    layer = StagedLayer(form, wanted, in_slots, runner, tmp_path)
    for slot, expert in enumerate(layer.layer.mapped()):
        assert holds(layer.layer, slot, expert, layer.host)
    for rows in ROWS:
        dispatch = layer.batch(rows)
        found = layer.hybrid(dispatch, decode=rows < 64)
        assert error(found, layer.stock(dispatch)) < TOLERANCES[form], f"{rows} rows"


@pytest.mark.parametrize("rate", [None, 200e6], ids=["unlimited", "limited"])
@pytest.mark.parametrize(("form", "wanted"), CASES, ids=NAMES)
def test_answers_stay_while_experts_move(form, wanted, rate, runner, tmp_path):
    """Steps run beside the copies; every slot holds its expert bit by bit after each swap."""
    layer = StagedLayer(form, wanted, 6, runner, tmp_path)
    experts, outcomes = layer.layer, Outcomes()
    copier = Copier(
        finished=outcomes.finish, copied=outcomes.count, bytes_per_second=rate, lane=layer.lane
    )
    chance = random.Random(11)
    errors = {1: [], 64: []}
    for batch in range(1, 26):
        absent = sorted(set(range(EXPERTS)) - set(experts.mapped()))
        come = chance.sample(absent, 3)
        slots = [experts.unmap(expert) for expert in chance.sample(experts.mapped(), 3)]
        layer.side.write_tables([(0, experts)])
        copies = [experts.reserve(e, s) for e, s in zip(come, slots, strict=True)]
        copier.submit(batch, copies)
        for rows in (1, 64):
            dispatch = layer.batch(rows)
            found = layer.hybrid(dispatch, decode=True)
            errors[rows].append(error(found, layer.stock(dispatch)))
        outcomes.wait(batch)
        assert outcomes.finished[-1] == (batch, None)
        for expert in come:
            experts.publish(expert)
        layer.side.write_tables([(0, experts)])
        for slot, expert in enumerate(experts.mapped()):
            assert holds(experts, slot, expert, layer.host)
    copier.stop()
    assert outcomes.bytes == 25 * 3 * experts.expert_bytes
    assert max(errors[64]) < TOLERANCES[form]
    # A tolerance is of many rows; one row can be off by half as much again, a lost expert is not.
    assert statistics.mean(errors[1]) < TOLERANCES[form]
    assert max(errors[1]) < 2 * TOLERANCES[form]
