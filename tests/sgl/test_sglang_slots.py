"""Slots of SGLang's own method: parameters that have memory, and those that only have a name."""

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("sglang", reason="SGLang is not installed")

from torch import nn

from ktd.experts.store import HostStore
from ktd.experts.weights import WeightFormat
from ktd.sgl.expert_format import ExpertFormat
from ktd.sgl.expert_loader import ExpertLoader
from ktd.sgl.quantiser import Quantiser
from ktd.sgl.sglang_slots import SglangSlots, unquantised_method

pytestmark = pytest.mark.filterwarnings("ignore")

EXPERTS, SLOTS, HIDDEN, WIDTH = 4, 2, 128, 128
FIELDS = {
    "w13_weight": "w13",
    "w2_weight": "w2",
    "w13_weight_scale_inv": "w13_scale",
    "w2_weight_scale_inv": "w2_scale",
}
SHAPES = {
    "w13_weight": (2 * WIDTH, HIDDEN),
    "w2_weight": (HIDDEN, WIDTH),
    "w13_weight_scale_inv": (2 * WIDTH // 128, HIDDEN // 128),
    "w2_weight_scale_inv": (HIDDEN // 128, WIDTH // 128),
}


class Layer(nn.Module):
    """What SGLang's method reads from its layer."""

    def __init__(self):
        super().__init__()
        self.moe_runner_config = SimpleNamespace(is_gated=True)
        self.num_local_experts = EXPERTS
        self.use_triton_kernels = False
        self.use_flashinfer_trtllm_moe = False


def write(parameter, tensor, _name, shard, expert):
    """As SGLang's loader does it: a block of scales, or rows."""
    rows = parameter.data[expert]
    half = rows.shape[0] // 2
    part = {"w1": rows[:half], "w3": rows[half:], "w2": rows}[shard]
    part.copy_(tensor)


def test_fp8_experts_that_are_quantised_at_load_have_bf16_slots_and_scales_without_memory():
    """The model's loader finds all of the checkpoint's names; slots have what SGLang computes."""
    layer = Layer()
    template = {
        name: nn.Parameter(
            torch.empty(
                (EXPERTS, *shape),
                dtype=torch.float32 if "scale" in name else torch.float8_e4m3fn,
                device="meta",
            ),
            requires_grad=False,
        )
        for name, shape in SHAPES.items()
    }
    loader = ExpertLoader(
        template,
        store=HostStore(),
        load=write,
        loaded=lambda _: None,
        quantiser=Quantiser("int8", HostStore(), lambda *_: None),
        source=ExpertFormat(WeightFormat.FP8_BLOCK, FIELDS),
    )
    attributes = {
        "hidden_size": HIDDEN,
        "intermediate_size_per_partition": WIDTH,
        "params_dtype": torch.bfloat16,
    }
    ignored = []
    slots = SglangSlots(
        unquantised_method(layer),
        layer,
        loader,
        SLOTS,
        attributes,
        names=("w13_weight", "w2_weight"),
        unstored={"w13_input_scale": lambda *_: ignored.append(1)},
    )
    found = dict(layer.named_parameters())
    assert set(found) == {*SHAPES, "w13_input_scale"}
    tensors = slots.tensors(layer)
    assert {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()} == {
        "w13_weight": ((SLOTS, *SHAPES["w13_weight"]), torch.bfloat16),
        "w2_weight": ((SLOTS, *SHAPES["w2_weight"]), torch.bfloat16),
    }
    assert {name: p.numel() for name, p in found.items() if name not in tensors} == dict.fromkeys(
        ("w13_weight_scale_inv", "w2_weight_scale_inv", "w13_input_scale"), 0
    )
    found["w13_input_scale"].weight_loader(None)
    assert ignored == [1]
    values = torch.randn(HIDDEN, WIDTH).to(torch.float8_e4m3fn)
    for expert in range(EXPERTS):
        for shard in ("w1", "w3", "w2"):
            kind = "w2" if shard == "w2" else "w13"
            for name, tensor in (
                (f"{kind}_weight", values),
                (f"{kind}_weight_scale_inv", torch.full((1, 1), 0.5)),
            ):
                parameter = found[name]
                parameter.weight_loader(parameter, tensor, name, shard, expert)
    loader.finish()
    assert loader.missing() is None
    stored = loader.tensors
    assert set(stored) == {
        "w13_weight",
        "w13_weight_scale",
        "w2_weight",
        "w2_weight_scale",
    }
    decoded = stored["w2_weight"][3].float() * stored["w2_weight_scale"][3][:, None]
    step = stored["w2_weight_scale"][3][:, None]
    assert ((decoded - values.float() * 0.5).abs() <= 0.51 * step).all()


@pytest.mark.parametrize("num_slots", [0, 2, 4])
def test_the_input_is_never_overwritten_where_the_pool_reads_it_too(num_slots):
    """SGLang asks for sums in the input's place for most models; slots have fewer experts."""
    from sglang.srt.layers.moe.moe_runner.base import MoeRunnerConfig

    made = []
    slots = SglangSlots.__new__(SglangSlots)
    slots._method = SimpleNamespace(create_moe_runner=lambda _, config: made.append(config))
    slots._num_slots, slots._always_skips = num_slots, False
    asked = MoeRunnerConfig(num_experts=EXPERTS, num_local_experts=EXPERTS, inplace=True)
    slots.create_runner(None, asked)
    assert [(config.inplace, config.num_local_experts) for config in made] == [
        (False, max(1, num_slots))
    ]
    assert asked.inplace
