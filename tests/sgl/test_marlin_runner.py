"""SGLang's Marlin runner is given an expert map where it would else read an expert -1."""

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("sglang", reason="SGLang is not installed")

from ktd.experts.store import HostStore
from ktd.sgl import converted_slots
from ktd.sgl.converted_slots import RepackedSlots
from ktd.sgl.marlin_runner import MappedRunner
from ktd.sgl.one_expert import OneExpert
from ktd.sgl.scratch_expert import ScratchExpert
from tests.sgl.four_bits import Experts, Sizes

pytestmark = pytest.mark.filterwarnings("ignore")

SIZES = Sizes(experts=5, hidden=256, width=128, group=32)


class Runner:
    """Notes what it is asked."""

    runner_backend = "marlin"

    def __init__(self):
        self.asked = []

    def run(self, *asked, **named):
        self.asked.append((asked, named))
        return "computed"


def test_a_runner_is_told_the_map_and_the_rest_as_it_was():
    """SGLang's own description of the weights has a place for it."""
    from sglang.srt.layers.moe.moe_runner.marlin import MarlinMoeQuantInfo

    weights = [torch.zeros(1) for _ in range(6)]
    info = MarlinMoeQuantInfo(*weights, weight_bits=4, is_k_full=False)
    runner, expert_map = Runner(), torch.arange(3, dtype=torch.int32)
    mapped = MappedRunner(runner, expert_map)
    assert mapped.run("rows", info, lora_info=None) == "computed"
    ((rows, told), named) = runner.asked[0]
    assert (rows, named) == ("rows", {"lora_info": None})
    assert told.expert_map is expert_map
    assert info.expert_map is None
    assert (told.w13_qweight is weights[0], told.weight_bits, told.is_k_full) == (True, 4, False)
    assert mapped.runner_backend == "marlin"


@pytest.fixture
def slots(monkeypatch):
    """Slots with a runner that skips -1 by itself, or does not."""

    def make(num_slots, *, by_itself, always_skips=False):
        from sglang.srt.layers.moe.moe_runner import MoeRunnerConfig

        monkeypatch.setattr(converted_slots, "skips_by_itself", lambda: by_itself)
        # What SGLang does for its Triton runner needs no GPU.
        experts = Experts("int4-triton", SIZES)
        layer, cpu = experts.layer(), torch.device("cpu")
        expert = OneExpert(experts.method, layer, experts.format, experts.attributes, cpu)
        made = RepackedSlots(
            experts.method,
            layer,
            experts.loader(HostStore()),
            num_slots,
            experts.attributes,
            scratch=ScratchExpert(expert),
            always_skips=always_skips,
        )
        layer.scheme.kernel = SimpleNamespace(runner=Runner())
        config = MoeRunnerConfig(num_experts=5, num_local_experts=5, top_k=2, inplace=True)
        made.create_runner(layer, config)
        return made, layer

    return make


@pytest.mark.parametrize(
    ("num_slots", "by_itself", "always_skips", "mapped"),
    [
        (3, False, False, True),
        (0, False, False, True),
        (3, True, False, False),
        (5, False, False, False),
        (5, False, True, True),
    ],
)
def test_a_map_is_there_where_an_id_may_be_minus_one(
    slots, num_slots, by_itself, always_skips, mapped
):
    """In the runner that a kernel holds, and in the dispatcher that W4A16's scheme looks at."""
    made, layer = slots(num_slots, by_itself=by_itself, always_skips=always_skips)
    assert isinstance(layer.scheme.kernel.runner, MappedRunner) is mapped
    layer.dispatcher = SimpleNamespace(local_expert_mapping=None, name="SGLang's")
    seen = []
    made._method = SimpleNamespace(
        apply=lambda view, _: seen.append(view) or SimpleNamespace(hidden_states="sum")
    )
    topk = SimpleNamespace(_replace=lambda **_: None)
    dispatch = SimpleNamespace(topk_output=topk, _replace=lambda **_: None)
    assert made.compute(layer, dispatch, None, None) == "sum"
    dispatcher = seen[0].dispatcher
    assert dispatcher.name == "SGLang's"
    assert seen[0].w13_weight_packed is layer.w13_weight_packed
    if mapped:
        assert dispatcher.local_expert_mapping.tolist() == list(range(5)), "a piece has more"
    else:
        assert dispatcher.local_expert_mapping is None
